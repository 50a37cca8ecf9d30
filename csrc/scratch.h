// What a thread needs beside inputs and outputs: (K+1) rows of exponentials, and chunks of the first-level cache.
#pragma once

#include "fused.h"

namespace nanonet::NANONET_ISA {

constexpr int64_t kPackedClasses = 48;  // up to here rows, not classes, fill the lanes

template <class F>
NN_INLINE int64_t padded(int64_t n) {
  return (n + kLanes<F> - 1) / kLanes<F> * kLanes<F>;
}

// Arrays carved out of one allocation. A row's stride is odd in vectors, so that rows do not fall into one cache set.
template <class F>
struct Scratch {
  int64_t K, C, chunks, row_stride, chunk_stride;
  F* exps;     // (rows, row_stride): a whole row of each tensor, or kPackedClasses vectors of packed rows
  F* staged;   // (K+1, chunk_stride): rows converted or padded
  F* tops;     // (K+1, chunks) maximum of each chunk
  F* factors;  // (2, K+1, chunks) what brings e, and e^tau, to the row's maximum
  double* sums;  // (chunks, 2(K+1) + K + K K) of the fused path
  F* values;     // (4, chunk_stride) slopes of the teacher's term; what the general path adds up
  int64_t bytes;

  Scratch(const Problem& p, char* memory) : K(p.K), C(p.C) {
    constexpr int64_t L = kLanes<F>;
    const int64_t length = C <= kPackedClasses ? kPackedClasses * L : padded<F>(C);
    const int64_t fused = K <= kMaxFused ? K : 0;
    chunks = (C + kChunk - 1) / kChunk;
    row_stride = (length / L | 1) * L;
    chunk_stride = kChunk + L;
    const int64_t table = padded<F>(chunks);
    int64_t used = 0;
    auto take = [&](int64_t elements, int64_t size) {
      char* at = memory + used;
      used += (elements * size + 63) / 64 * 64;
      return at;
    };
    const int64_t slopes = fused && p.teacher && !has_kl_slopes(p.divergence) ? K - 1 : 0;  // one more in the teacher's
    exps = (F*)take((K + 1 + slopes) * row_stride + L, sizeof(F));
    staged = (F*)take((K + 1) * chunk_stride, sizeof(F));
    tops = (F*)take((K + 1) * table, sizeof(F));
    factors = (F*)take(2 * (K + 1) * table, sizeof(F));
    sums = (double*)take(chunks * (2 * (fused + 1) + fused + fused * fused), sizeof(double));
    values = (F*)take(kMaxFused * chunk_stride, sizeof(F));
    bytes = used;
  }

  int64_t table() const { return padded<F>(chunks); }
};

template <class F>
NN_INLINE F& upstream_of(const Problem& p, int term, int64_t k, int64_t n) {
  return ((F*)p.upstream)[(term * p.K + k) * p.N + n];
}

template <class F>
NN_INLINE F& term_of(const Problem& p, int term, int64_t k, int64_t n) {
  return ((F*)p.terms)[(term * p.K + k) * p.N + n];
}

// Row K is the teacher's.
template <class F>
NN_INLINE F* stats_of(const Problem& p, int64_t k, int64_t n) {
  return (F*)p.stats + (k * p.N + n) * kStats;
}

NN_INLINE char* dstudent_of(const Problem& p, int64_t k, int64_t n) {
  return p.dstudent + (k * p.N + n) * p.C * size_of(p.student->dtype);
}

NN_INLINE int64_t label_of(const Problem& p, int64_t n) { return p.label ? p.label[n] : kUnlabelled; }

// The temperature where softmax at 1 is its power, else 0.
NN_INLINE int power_of(double temperature) {
  const int power = temperature <= kMaxPower ? int(temperature) : 0;
  return double(power) == temperature ? power : 0;
}

}  // namespace nanonet::NANONET_ISA
