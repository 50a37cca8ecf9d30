// Vectors of one instruction set, by the compiler's vector extension: arithmetic, comparison and ?: are the language's.
//
// This file and every header above it are compiled once per instruction set, with NANONET_ISA the name of the
// set and NANONET_VECTOR_BYTES its width. Everything lives in namespace nanonet::NANONET_ISA and nothing of the
// standard library is instantiated: a std:: template compiled for AVX-512 here could be the copy that the linker
// keeps for everybody.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "problem.h"

#define NN_INLINE inline __attribute__((always_inline))

namespace nanonet::NANONET_ISA {

constexpr int64_t kVectorBytes = NANONET_VECTOR_BYTES;

template <class F>
struct VecType {
  typedef F type __attribute__((vector_size(NANONET_VECTOR_BYTES), may_alias));
};
template <class F>
using Vec = typename VecType<F>::type;
template <class F>
using Bits = std::conditional_t<sizeof(F) == 4, int32_t, int64_t>;
template <class F>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(F));

// As many doubles as a Vec<F> has lanes: sums that must not lose what F would.
template <class F>
struct WideType {
  typedef double type __attribute__((vector_size(kLanes<F> * 8), may_alias));
};
template <class F>
using Wide = typename WideType<F>::type;

template <class F>
NN_INLINE Vec<F> splat(F x) {
  return x - Vec<F>{};
}

template <class F>
NN_INLINE Vec<F> load(const F* p) {
  Vec<F> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class F>
NN_INLINE void store(F* p, Vec<F> v) {
  std::memcpy(p, &v, sizeof v);
}

// Past the caches, for a large output that nobody reads soon; p is aligned to the vector.
template <class V>
NN_INLINE void stream(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
  std::memcpy(p, &v, sizeof v);
}

// Streamed stores are ordered before whatever another thread sees next.
NN_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The greater; b where a is NaN.
template <class F>
NN_INLINE Vec<F> larger(Vec<F> a, Vec<F> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return (Vec<F>)_mm512_max_ps((__m512)a, (__m512)b);
  else
    return (Vec<F>)_mm512_max_pd((__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
#endif
}

// The smaller; b where a is NaN.
template <class F>
NN_INLINE Vec<F> smaller(Vec<F> a, Vec<F> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return (Vec<F>)_mm512_min_ps((__m512)a, (__m512)b);
  else
    return (Vec<F>)_mm512_min_pd((__m512d)a, (__m512d)b);
#else
  return a < b ? a : b;
#endif
}

template <class V, size_t... I>
NN_INLINE auto low_half(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, I...);
}

template <class V, size_t... I>
NN_INLINE auto high_half(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (I + sizeof...(I))...);
}

// Folds the lanes in a fixed tree: the same bits whoever calls it.
template <class V, class Fold>
NN_INLINE auto fold_lanes(V v, Fold fold) {
  constexpr size_t lanes = sizeof(V) / sizeof(v[0]);
  if constexpr (lanes == 2) {
    return fold(v[0], v[1]);
  } else {
    constexpr std::make_index_sequence<lanes / 2> half{};
    return fold_lanes(fold(low_half(v, half), high_half(v, half)), fold);
  }
}

template <class V>
NN_INLINE auto sum_lanes(V v) {
  return fold_lanes(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <class V>
NN_INLINE auto max_lanes(V v) {
  return fold_lanes(v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

template <class V>
NN_INLINE auto min_lanes(V v) {
  return -max_lanes(-v);
}

// A Wide<F> as vectors of the instruction set, which stay in registers.
template <class F>
struct WideSum {
  static constexpr size_t kParts = 8 / sizeof(F);
  Vec<double> part[kParts] = {};

  NN_INLINE void add(Vec<F> v) {
    if constexpr (kParts == 1) {
      part[0] += v;
    } else {
      constexpr std::make_index_sequence<kLanes<F> / 2> half{};
      part[0] += __builtin_convertvector(low_half(v, half), Vec<double>);
      part[1] += __builtin_convertvector(high_half(v, half), Vec<double>);
    }
  }

  NN_INLINE Wide<F> value() const {
    Wide<F> v;
    std::memcpy(&v, part, sizeof v);
    return v;
  }
};

template <class F>
NN_INLINE Wide<F> widen(Vec<F> v) {
  return __builtin_convertvector(v, Wide<F>);
}

template <class F>
NN_INLINE Vec<F> narrow(Wide<F> v) {
  return __builtin_convertvector(v, Vec<F>);
}

}  // namespace nanonet::NANONET_ISA
