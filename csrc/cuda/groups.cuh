// The threads that share a row, and what they do together: merge softmax statistics, add sums. Always in one order, so
// that a second run gives the same bits, and with the same result in every thread.
#pragma once

#include "operands.cuh"

namespace nanonet::cuda {

// Of part of a row: its maximum; the sums of exp((x - top)/tau) and exp(x - top).
struct Statistics {
  float top, soft, plain;
};

// Base-2 exponents of one logit: at the temperature, and at 1.
struct Exponents {
  float soft, plain;
};

// What a sum below `top` counts below `higher`; no part has to be above -inf.
NN_DEVICE float factor(float top, float higher, float exponent) {
  return top == higher ? 1.0f : exp2_fast((top - higher) * exponent);
}

// Addition of rounded products is symmetric, a fused multiply-add is not: both partners have to get the same bits.
NN_DEVICE float add_scaled(float a, float f, float b, float g) { return __fadd_rn(__fmul_rn(a, f), __fmul_rn(b, g)); }

NN_DEVICE Statistics merged(const Statistics& a, const Statistics& b, const Exponents& per_logit) {
  const float top = fmaxf(a.top, b.top);
  return {top,
          add_scaled(a.soft, factor(a.top, top, per_logit.soft), b.soft, factor(b.top, top, per_logit.soft)),
          add_scaled(a.plain, factor(a.top, top, per_logit.plain), b.plain, factor(b.top, top, per_logit.plain))};
}

NN_DEVICE Statistics of_lane(const Statistics& mine, int offset) {
  return {__shfl_xor_sync(kAllLanes, mine.top, offset), __shfl_xor_sync(kAllLanes, mine.soft, offset),
          __shfl_xor_sync(kAllLanes, mine.plain, offset)};
}

// `width` neighbouring lanes of a warp, a power of two. The other lanes of the warp do the same for other rows.
struct Lanes {
  int width;

  NN_DEVICE int rank() const { return int(threadIdx.x) & (width - 1); }
  NN_DEVICE bool leader() const { return rank() == 0; }
  NN_DEVICE bool serves(int k) const { return rank() == (k & (width - 1)); }  // makes the terms of student k
  // Whether it holds for all that go the same way: the shuffles need every lane of the warp.
  NN_DEVICE bool all(bool mine) const { return __all_sync(kAllLanes, mine); }

  template <int kCount>
  NN_DEVICE void merge(Statistics (&rows)[kCount], const Exponents& per_logit) const {
    for (int offset = width / 2; offset > 0; offset /= 2) {
      NN_UNROLL
      for (int r = 0; r < kCount; ++r) rows[r] = merged(rows[r], of_lane(rows[r], offset), per_logit);
    }
  }

  template <int kCount>
  NN_DEVICE void sum(float (&values)[kCount]) const {
    for (int offset = width / 2; offset > 0; offset /= 2) {
      NN_UNROLL
      for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
    }
  }
};

constexpr int kMaxWarps = 16;

// Shared memory of a block group of K students at most.
template <int kK>
struct Exchange {
  static constexpr int kValues = 3 * (kK + 1);
  float of_warp[kMaxWarps][kValues];
  float statistics[kValues], sums[kValues];  // of this block: what the other blocks of the cluster read
  float total[kValues];
};

// A block, or all blocks of a cluster.
//
// Two barriers of the cluster a row are enough: `statistics` is written again only after the barrier within sum(), and
// `sums` only after the one within the next row's merge(); each follows every read of what was there before. A row that
// calls sum() twice needs another between.
template <int kK, bool kCluster>
struct Blocks {
  Exchange<kK>& exchange;

  NN_DEVICE bool leader() const { return threadIdx.x == 0 && rank() == 0; }
  NN_DEVICE bool serves(int k) const { return int(threadIdx.x) == k % warps() * 32 && rank() == 0; }
  NN_DEVICE static bool all(bool ours) { return ours; }  // every thread of the group has the same row's

  NN_DEVICE static int rank() {
#if defined(NN_CLUSTERS)
    if constexpr (kCluster) return int(cluster_rank());
#endif
    return 0;
  }
  NN_DEVICE static int size() {
#if defined(NN_CLUSTERS)
    if constexpr (kCluster) return int(cluster_size());
#endif
    return 1;
  }
  NN_DEVICE static int warp() { return int(threadIdx.x) / 32; }
  NN_DEVICE static int warps() { return int(blockDim.x) / 32; }

  NN_DEVICE static void cluster_barrier() {
#if defined(NN_CLUSTERS)
    if constexpr (kCluster) cluster_sync();
#endif
  }
  NN_DEVICE static float remote(const float* mine, int from) {
#if defined(NN_CLUSTERS)
    if constexpr (kCluster) return read_from(mine, uint32_t(from));
#endif
    return *mine;
  }

  NN_DEVICE static Statistics at(const float* v) { return {v[0], v[1], v[2]}; }
  NN_DEVICE static void set(float* v, const Statistics& s) { v[0] = s.top, v[1] = s.soft, v[2] = s.plain; }

  template <int kCount>
  NN_DEVICE void merge(Statistics (&rows)[kCount], const Exponents& per_logit) const {
    Lanes{32}.merge(rows, per_logit);
    if (threadIdx.x % 32 == 0) {
      NN_UNROLL
      for (int r = 0; r < kCount; ++r) set(exchange.of_warp[warp()] + 3 * r, rows[r]);
    }
    __syncthreads();
    const int r = int(threadIdx.x);
    if (r < kCount) {
      Statistics all = at(exchange.of_warp[0] + 3 * r);
      for (int w = 1; w < warps(); ++w) all = merged(all, at(exchange.of_warp[w] + 3 * r), per_logit);
      set((kCluster ? exchange.statistics : exchange.total) + 3 * r, all);
    }
    if constexpr (kCluster) {
      cluster_barrier();
      const int lane = int(threadIdx.x) % 32;
      for (int i = warp(); i < kCount; i += warps()) {
        const float* mine = exchange.statistics + 3 * i;
        Statistics one[1] = {{kLowest, 0, 0}};
        if (lane < size()) one[0] = {remote(mine, lane), remote(mine + 1, lane), remote(mine + 2, lane)};
        Lanes{16}.merge(one, per_logit);
        if (lane == 0) set(exchange.total + 3 * i, one[0]);
      }
    }
    __syncthreads();
    NN_UNROLL
    for (int i = 0; i < kCount; ++i) rows[i] = at(exchange.total + 3 * i);
  }

  template <int kCount>
  NN_DEVICE void sum(float (&values)[kCount]) const {
    Lanes{32}.sum(values);
    if (threadIdx.x % 32 == 0) {
      NN_UNROLL
      for (int i = 0; i < kCount; ++i) exchange.of_warp[warp()][i] = values[i];
    }
    __syncthreads();
    const int i = int(threadIdx.x);
    if (i < kCount) {
      float all = 0;
      for (int w = 0; w < warps(); ++w) all += exchange.of_warp[w][i];
      (kCluster ? exchange.sums : exchange.total)[i] = all;
    }
    if constexpr (kCluster) {
      cluster_barrier();
      const int lane = int(threadIdx.x) % 32, from = lane % 16;
      for (int j = 2 * warp(); j < kCount; j += 2 * warps()) {
        const int value = j + lane / 16;
        float one[1] = {value < kCount && from < size() ? remote(exchange.sums + value, from) : 0.0f};
        Lanes{16}.sum(one);
        if (value < kCount && from == 0) exchange.total[value] = one[0];
      }
    }
    __syncthreads();
    NN_UNROLL
    for (int j = 0; j < kCount; ++j) values[j] = exchange.total[j];
  }
};

}  // namespace nanonet::cuda
