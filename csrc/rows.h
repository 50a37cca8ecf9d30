// Rows of any dtype in and out of vectors of float or double.
#pragma once

#include "vec.h"

namespace nanonet::NANONET_ISA {

typedef uint16_t Half __attribute__((vector_size(NANONET_VECTOR_BYTES / 2), may_alias));
using Words = Vec<uint32_t>;

// A cast between vectors of the same size reinterprets the bits.
NN_INLINE Vec<float> from_bfloat16(Half h) { return (Vec<float>)(__builtin_convertvector(h, Words) << 16); }

NN_INLINE Half to_bfloat16(Vec<float> v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest even
  return __builtin_convertvector(v == v ? rounded : Words{} + 0x7FC0, Half);
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

template <class F, class T>
struct Cast;  // a vector of F from and to memory of T

template <class F>
struct Cast<F, F> {
  static NN_INLINE Vec<F> from(const F* p) { return load(p); }
  static NN_INLINE void to(F* p, Vec<F> v) { store(p, v); }
};

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <>
struct Cast<float, Bfloat16> {
  static NN_INLINE Vec<float> from(const Bfloat16* p) {
    Half h;
    std::memcpy(&h, p, sizeof h);
    return from_bfloat16(h);
  }
  static NN_INLINE void to(Bfloat16* p, Vec<float> v) {
    const Half h = to_bfloat16(v);
    std::memcpy(p, &h, sizeof h);
  }
};

template <>
struct Cast<float, Float16> {
  static NN_INLINE Vec<float> from(const Float16* p) {
    Half h;
    std::memcpy(&h, p, sizeof h);
    return from_float16(h);
  }
  static NN_INLINE void to(Float16* p, Vec<float> v) {
    const Half h = to_float16(v);
    std::memcpy(p, &h, sizeof h);
  }
};

template <>
struct Cast<float, double> {
  static NN_INLINE Vec<float> from(const double* p) {
    Wide<float> w;
    std::memcpy(&w, p, sizeof w);
    return narrow<float>(w);
  }
};

// Double from a narrower teacher, in the halves or quarters of what the narrow load gives.
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

// n elements as F, converted into the buffer and padded there to full vectors; without a copy where there is
// nothing to convert or pad.
template <class F, class T>
NN_INLINE const F* staged(const T* source, int64_t n, F* buffer, F pad) {
  constexpr int64_t L = kLanes<F>;
  if (std::is_same_v<F, T> && n % L == 0) return (const F*)source;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(buffer + i, Cast<F, T>::from(source + i));
  if (i < n) {
    T tail[L] = {};
    for (int64_t lane = 0; lane < n - i; ++lane) tail[lane] = source[i + lane];
    store(buffer + i, Cast<F, T>::from(tail));
    for (int64_t lane = n - i; lane < L; ++lane) buffer[i + lane] = pad;
  }
  return buffer;
}

// Classes [begin, begin + n) of row n of a matrix.
template <class F>
const F* staged(const Rows& rows, int64_t row, int64_t begin, int64_t n, F* buffer, F pad) {
  const char* source = rows.data + row * rows.row_bytes + begin * size_of(rows.dtype);
  switch (rows.dtype) {
    case Dtype::kFloat32: return staged((const float*)source, n, buffer, pad);
    case Dtype::kFloat64: return staged((const double*)source, n, buffer, pad);
    case Dtype::kBfloat16: return staged((const Bfloat16*)source, n, buffer, pad);
    default: return staged((const Float16*)source, n, buffer, pad);
  }
}

template <class F>
NN_INLINE F element(const Rows& rows, int64_t row, int64_t c) {
  F buffer[kLanes<F>];
  return *staged<F>(rows, row, c, 1, buffer, F(0));
}

template <class F, class T>
NN_INLINE void put_plain(T* out, const F* source, int64_t from, int64_t to) {
  constexpr int64_t L = kLanes<F>;
  for (; from + L <= to; from += L) Cast<F, T>::to(out + from, load(source + from));
  if (from == to) return;
  T tail[L];
  Cast<F, T>::to(tail, load(source + from));
  for (int64_t i = 0; from + i < to; ++i) out[from + i] = tail[i];
}

// Writes elements [from, to) of a row; returns how far it came. Streamed lines are written whole: what does not
// fill one waits for the next call, and `last` flushes it. The source is readable to the end of a vector.
template <class F, class T>
NN_INLINE int64_t put(T* out, const F* source, int64_t from, int64_t to, bool streamed, bool last) {
  constexpr int64_t L = kLanes<F>, line = kVectorBytes / int64_t(sizeof(T));
  if (streamed) {
    const int64_t edge = from + int64_t(-uintptr_t(out + from) % kVectorBytes / sizeof(T));
    if (edge + line <= to) {
      put_plain(out, source, from, edge);
      for (from = edge; from + line <= to; from += line) {
        T packed[line];
        for (int64_t i = 0; i < line; i += L) Cast<F, T>::to(packed + i, load(source + from + i));
        stream(out + from, load((const float*)packed));
      }
    }
    if (!last) return from;
  }
  put_plain(out, source, from, to);
  return to;
}

template <class F>
int64_t put(char* out, Dtype dtype, const F* source, int64_t from, int64_t to, bool streamed, bool last) {
  if constexpr (sizeof(F) == 8) {
    return put((double*)out, source, from, to, streamed, last);
  } else {
    switch (dtype) {
      case Dtype::kFloat32: return put((float*)out, source, from, to, streamed, last);
      case Dtype::kBfloat16: return put((Bfloat16*)out, source, from, to, streamed, last);
      default: return put((Float16*)out, source, from, to, streamed, last);
    }
  }
}

}  // namespace nanonet::NANONET_ISA
