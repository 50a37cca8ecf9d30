// Rows of any dtype in and out of vectors of float or double.
#pragma once

#include "vec.h"

namespace nanonet::NANONET_ISA {

typedef uint16_t Half __attribute__((vector_size(NANONET_VECTOR_BYTES / 2), may_alias));
using Words = Vec<uint32_t>;

// gcc takes two halves and joins them
#if defined(__AVX512F__)
NN_INLINE Words words_of(Half h) { return (Words)_mm512_cvtepu16_epi32((__m256i)h); }
NN_INLINE Half half_of(Words w) { return (Half)_mm512_cvtepi32_epi16((__m512i)w); }
#else
NN_INLINE Words words_of(Half h) { return __builtin_convertvector(h, Words); }
NN_INLINE Half half_of(Words w) { return __builtin_convertvector(w, Half); }
#endif

// A cast between vectors of the same size reinterprets the bits.
NN_INLINE Vec<float> from_bfloat16(Half h) { return (Vec<float>)(words_of(h) << 16); }

NN_INLINE Half to_bfloat16(Vec<float> v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest even
  return half_of(v == v ? rounded : Words{} + 0x7FC0);
}

#if defined(__AVX512F__)
NN_INLINE Vec<float> from_float16(Half h) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
NN_INLINE Half to_float16(Vec<float> v) { return (Half)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
NN_INLINE Vec<float> from_float16(Half h) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
NN_INLINE Half to_float16(Vec<float> v) { return (Half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
NN_INLINE Vec<float> from_float16(Half h) {
  const Words w = __builtin_convertvector(h, Words), magnitude = (w & 0x7FFF) << 13;
  const Words scaled = (Words)((Vec<float>)magnitude * 0x1p112f);  // also makes denormals normal
  const Words special = magnitude >= 0x0F800000 ? Words{} + 0x7F800000 : Words{};
  return (Vec<float>)(scaled | special | ((w & 0x8000) << 16));
}

NN_INLINE Half to_float16(Vec<float> v) {
  const Words bits = (Words)v, magnitude = bits & 0x7FFFFFFF;
  const Words special = magnitude > 0x7F800000 ? Words{} + 0x7E00 : Words{} + 0x7C00;
  const Words denormal = (Words)((Vec<float>)magnitude + 0.5f) - 0x3F000000;  // the addition rounds to nearest even
  const Words normal = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  const Words rounded = magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? denormal : normal;
  return __builtin_convertvector(rounded | ((bits >> 16) & 0x8000), Half);
}
#endif

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A vector of F from and to as many elements of T: memory's order is the lanes'.
template <class F, class T>
struct Cast;

template <class F>
struct Cast<F, F> {
  static NN_INLINE Vec<F> from(const F* p) { return load(p); }
  static NN_INLINE Vec<F> packed(Vec<F> v) { return v; }
};

NN_INLINE Half load_half(const void* p) {
  Half h;
  std::memcpy(&h, p, sizeof h);
  return h;
}

template <>
struct Cast<float, Bfloat16> {
  static NN_INLINE Vec<float> from(const Bfloat16* p) { return from_bfloat16(load_half(p)); }
  static NN_INLINE Half packed(Vec<float> v) { return to_bfloat16(v); }
};

template <>
struct Cast<float, Float16> {
  static NN_INLINE Vec<float> from(const Float16* p) { return from_float16(load_half(p)); }
  static NN_INLINE Half packed(Vec<float> v) { return to_float16(v); }
};

template <>
struct Cast<float, double> {
  static NN_INLINE Vec<float> from(const double* p) {
    Wide<float> w;
    std::memcpy(&w, p, sizeof w);
    return narrow<float>(w);
  }
};

// Double from a narrower teacher: the first lanes of what the load as float gives.
template <class T>
  requires(!std::is_same_v<T, double>)
struct Cast<double, T> {
  static NN_INLINE Vec<double> from(const T* p) {
    Vec<double> v;
    T padded[kLanes<float>] = {};
    std::memcpy(padded, p, kLanes<double> * sizeof(T));
    const Vec<float> narrow = Cast<float, T>::from(padded);
    for (int64_t i = 0; i < kLanes<double>; ++i) v[i] = double(narrow[i]);
    return v;
  }
};

// The last vector of a row: n elements, then pad.
template <class F, class T>
NN_INLINE void stage_tail(const T* source, int64_t n, F* buffer, F pad) {
  constexpr int64_t L = kLanes<F>;
  T tail[L] = {};
  for (int64_t lane = 0; lane < n; ++lane) tail[lane] = source[lane];
  store(buffer, Cast<F, T>::from(tail));
  for (int64_t lane = n; lane < L; ++lane) buffer[lane] = pad;
}

// n elements as F, converted into the buffer and padded there to full vectors; without a copy where there is
// nothing to convert or pad.
template <class F, class T>
NN_INLINE const F* staged(const T* source, int64_t n, F* buffer, F pad) {
  constexpr int64_t L = kLanes<F>;
  if (std::is_same_v<F, T> && n % L == 0) return (const F*)source;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(buffer + i, Cast<F, T>::from(source + i));
  if (i < n) stage_tail(source + i, n - i, buffer + i, pad);
  return buffer;
}

// Calls body with classes [begin, ...) of a row, as a pointer to their type.
template <class Body>
NN_INLINE auto with_type(const Rows& rows, int64_t row, int64_t begin, Body body) {
  const char* source = rows.row(row) + begin * size_of(rows.dtype);
  switch (rows.dtype) {
    case Dtype::kFloat32: return body((const float*)source);
    case Dtype::kFloat64: return body((const double*)source);
    case Dtype::kBfloat16: return body((const Bfloat16*)source);
    default: return body((const Float16*)source);
  }
}

template <class F>
const F* staged(const Rows& rows, int64_t row, int64_t begin, int64_t n, F* buffer, F pad) {
  return with_type(rows, row, begin, [&](auto* source) { return staged(source, n, buffer, pad); });
}

constexpr int64_t kAhead = 2048;  // bytes: how far ahead of what is read the prefetcher is sent

template <class T>
NN_INLINE void prefetch(const T* p) {
  __builtin_prefetch((const char*)p + kAhead, 0, 3);
}

// A chunk as vectors of F, padded with its first value from pads[0] to pads[1]; and its maximum.
template <class F>
struct Chunk {
  const F* x;
  F *pads[2], top;
};

template <class F, class T>
NN_INLINE Chunk<F> chunk_of(const T* source, int64_t n, F* buffer) {
  constexpr int64_t L = kLanes<F>;
  const int64_t whole = n / L * L;
  const bool copied = !std::is_same_v<F, T> || whole < n;
  F first[L];
  stage_tail(source, 1, first, F(0));
  Vec<F> top[2] = {splat(first[0]), splat(first[0])};  // two, for the latency
  const auto take = [&](int half, int64_t i) __attribute__((always_inline)) {
    const Vec<F> v = Cast<F, T>::from(source + i);
    prefetch(source + i);
    if (copied) store(buffer + i, v);
    top[half] = larger<F>(v, top[half]);
  };
  int64_t i = 0;
  for (; i + L < whole; i += 2 * L) take(0, i), take(1, i + L);
  if (i < whole) take(0, i);
  if (whole < n) {
    stage_tail(source + whole, n - whole, buffer + whole, first[0]);
    top[1] = larger<F>(load(buffer + whole), top[1]);
  }
  const F* x = copied ? buffer : (const F*)source;
  return {x, {buffer + n, buffer + (n + L - 1) / L * L}, max_lanes(larger<F>(top[0], top[1]))};
}

template <class F>
NN_INLINE F element(const Rows& rows, int64_t row, int64_t c) {
  F buffer[kLanes<F>];
  return *staged<F>(rows, row, c, 1, buffer, F(0));
}

// n elements of a row, past the caches if `streamed`. The source is readable to the end of a vector.
template <class F, class T>
inline void put(T* out, const F* source, int64_t n, bool streamed = false) {
  constexpr int64_t L = kLanes<F>, bytes = L * int64_t(sizeof(T));
  int64_t i = 0;
  if (streamed) {  // what is streamed is aligned
    const int64_t edge = int64_t(-uintptr_t(out) % bytes / sizeof(T));
    if (edge > 0 && edge <= n) put(out, source, i = edge);
    for (; i >= edge && i + L <= n; i += L) stream(out + i, Cast<F, T>::packed(load(source + i)));
  }
  for (; i + L <= n; i += L) {
    const auto packed = Cast<F, T>::packed(load(source + i));
    std::memcpy(out + i, &packed, sizeof packed);
  }
  if (i == n) return;
  const auto packed = Cast<F, T>::packed(load(source + i));
  std::memcpy(out + i, &packed, size_t(n - i) * sizeof(T));
}

// Calls body with a pointer into an output of that dtype.
template <class F, class Body>
NN_INLINE void with_output(char* out, Dtype dtype, Body body) {
  if constexpr (sizeof(F) == 8) {
    body((double*)out);
  } else {
    switch (dtype) {
      case Dtype::kFloat32: return body((float*)out);
      case Dtype::kBfloat16: return body((Bfloat16*)out);
      default: return body((Float16*)out);
    }
  }
}

template <class F>
void put(char* out, Dtype dtype, const F* source, int64_t n, bool streamed = false) {
  with_output<F>(out, dtype, [&](auto* to) { put(to, source, n, streamed); });
}

}  // namespace nanonet::NANONET_ISA
