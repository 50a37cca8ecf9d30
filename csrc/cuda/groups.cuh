// The threads that share a row: they merge softmax statistics and add sums. The order is fixed, so a second run gives
// the same bits, and every thread gets the same result.
#pragma once

#include "operands.cuh"

namespace nanonet::cuda {

// Of part of a row: its maximum, sum exp((x - max)/tau) and sum exp(x - max).
struct Statistics {
  float max, sum_tau, sum_1;
};

// Base-2 exponents per logit: at the temperature and at 1.
struct Exponents {
  float tau, one;
};

// Rescales a sum from maximum `from` to maximum `to`; 1 where both are -inf.
NN_DEVICE float rescale(float from, float to, float exponent) {
  return from == to ? 1.0f : exp2_fast((from - to) * exponent);
}

// a f + b g without a fused multiply-add, which is not symmetric: both lanes of a pair must get the same bits.
NN_DEVICE float add_scaled(float a, float f, float b, float g) { return __fadd_rn(__fmul_rn(a, f), __fmul_rn(b, g)); }

NN_DEVICE Statistics merged(const Statistics& a, const Statistics& b, const Exponents& per_logit) {
  const float max = fmaxf(a.max, b.max);
  const auto sum = [&](float of_a, float of_b, float exponent) {
    return add_scaled(of_a, rescale(a.max, max, exponent), of_b, rescale(b.max, max, exponent));
  };
  return {max, sum(a.sum_tau, b.sum_tau, per_logit.tau), sum(a.sum_1, b.sum_1, per_logit.one)};
}

NN_DEVICE Statistics of_lane(const Statistics& mine, int offset) {
  return {__shfl_xor_sync(kAllLanes, mine.max, offset), __shfl_xor_sync(kAllLanes, mine.sum_tau, offset),
          __shfl_xor_sync(kAllLanes, mine.sum_1, offset)};
}

// `width` neighbouring lanes of a warp, a power of two. The warp's other lanes work on other rows.
struct Lanes {
  int width;

  NN_DEVICE int rank() const { return int(threadIdx.x) & (width - 1); }
  NN_DEVICE bool leader() const { return rank() == 0; }
  NN_DEVICE bool serves(int k) const { return rank() == (k & (width - 1)); }  // writes the terms of student k
  // Over the whole warp: its lanes must branch alike, as the shuffles need every lane.
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

constexpr int kMaxWarps = 16, kMaxCluster = 16;

// Shared memory of Blocks, for up to kK students.
template <int kK>
struct Exchange {
  static constexpr int kValues = 3 * (kK + 1);
  float of_warp[kMaxWarps][kValues];
  float of_block[2][kMaxCluster][kValues];  // received from each block of the cluster: statistics; sums
  Mbarrier mbarrier[2];                     // for each of the two
  float total[kValues];
};

// A block, or the blocks of a cluster, which exchange their results by messages.
//
// A block sends the statistics of a row only after it has received the previous row's sums from every block, and a
// block sends its sums only after it has read all statistics. So no statistics are overwritten before they are read;
// the same holds for the sums. A row that calls merge() or sum() twice needs a cluster barrier in between.
template <int kK, bool kCluster>
struct Blocks {
  Exchange<kK>& exchange;
  uint32_t phases = 0;  // bit i: parity of the completed phases of mbarrier i

  NN_DEVICE explicit Blocks(Exchange<kK>& exchange) : exchange(exchange) {
    if constexpr (kCluster) {
      if (threadIdx.x < 2) mbarrier_init(&exchange.mbarrier[threadIdx.x]);
      cluster_barrier();
    }
  }

  NN_DEVICE bool leader() const { return threadIdx.x == 0 && rank() == 0; }
  NN_DEVICE bool serves(int k) const { return int(threadIdx.x) == k % warps() * 32 && rank() == 0; }
  NN_DEVICE static bool all(bool ours) { return ours; }  // every thread works on the same row

  NN_DEVICE static int rank() {
    if constexpr (kCluster) return int(cluster_rank());
    return 0;
  }
  NN_DEVICE static int size() {
    if constexpr (kCluster) return int(cluster_size());
    return 1;
  }
  NN_DEVICE static int warp() { return int(threadIdx.x) / 32; }
  NN_DEVICE static int warps() { return int(blockDim.x) / 32; }

  NN_DEVICE static void cluster_barrier() {
    if constexpr (kCluster) cluster_sync();
  }

  NN_DEVICE static Statistics at(const float* v) { return {v[0], v[1], v[2]}; }
  NN_DEVICE static void set(float* v, const Statistics& s) { v[0] = s.max, v[1] = s.sum_tau, v[2] = s.sum_1; }

  // Waits until every block of the cluster has sent kCount values to this mbarrier.
  template <int kCount>
  NN_DEVICE void await(int mbarrier) {
    if (threadIdx.x == 0) mbarrier_expect(&exchange.mbarrier[mbarrier], uint32_t(size() * kCount * sizeof(float)));
    mbarrier_wait(&exchange.mbarrier[mbarrier], phases >> mbarrier & 1);
    phases ^= 1u << mbarrier;
  }
  NN_DEVICE void send_to(int block, int mbarrier, int i, float value) const {
    send_async(&exchange.of_block[mbarrier][rank()][i], value, &exchange.mbarrier[mbarrier], uint32_t(block));
  }

  template <int kCount>
  NN_DEVICE void merge(Statistics (&rows)[kCount], const Exponents& per_logit) {
    Lanes{32}.merge(rows, per_logit);
    const int lane = int(threadIdx.x) % 32;
    if (lane == 0) {
      NN_UNROLL
      for (int r = 0; r < kCount; ++r) set(exchange.of_warp[warp()] + 3 * r, rows[r]);
    }
    __syncthreads();
    // merges row i over all parts, one part per lane
    const auto merged_row = [&](int i, const float (*part)[Exchange<kK>::kValues], int parts) {
      Statistics one[1] = {{kLowest, 0, 0}};
      if (lane < parts) one[0] = at(part[lane] + 3 * i);
      Lanes{16}.merge(one, per_logit);
      return one[0];
    };
    for (int i = warp(); i < kCount; i += warps()) {
      const Statistics ours = merged_row(i, exchange.of_warp, warps());
      if constexpr (kCluster) {
        const float values[3] = {ours.max, ours.sum_tau, ours.sum_1};
        NN_UNROLL
        for (int j = 0; j < 3; ++j)
          if (lane < size()) send_to(lane, 0, 3 * i + j, values[j]);
      } else if (lane == 0) {
        set(exchange.total + 3 * i, ours);
      }
    }
    if constexpr (kCluster) {
      await<3 * kCount>(0);
      for (int i = warp(); i < kCount; i += warps()) {
        const Statistics all = merged_row(i, exchange.of_block[0], size());
        if (lane == 0) set(exchange.total + 3 * i, all);
      }
    }
    __syncthreads();
    NN_UNROLL
    for (int i = 0; i < kCount; ++i) rows[i] = at(exchange.total + 3 * i);
  }

  template <int kCount>
  NN_DEVICE void sum(float (&values)[kCount]) {
    Lanes{32}.sum(values);
    if (threadIdx.x % 32 == 0) {
      NN_UNROLL
      for (int i = 0; i < kCount; ++i) exchange.of_warp[warp()][i] = values[i];
    }
    __syncthreads();
    // two values per warp, 16 lanes each; store(value, sum) in every lane
    const int lane = int(threadIdx.x) % 16, half = int(threadIdx.x) % 32 / 16;
    const auto sum_of = [&](const float (*part)[Exchange<kK>::kValues], int parts, auto store) {
      for (int first = 2 * warp(); first < kCount; first += 2 * warps()) {
        const int i = first + half;
        float one[1] = {i < kCount && lane < parts ? part[lane][i] : 0.0f};
        Lanes{16}.sum(one);
        if (i < kCount) store(i, one[0]);
      }
    };
    const auto store_total = [&](int i, float sum) {
      if (lane == 0) exchange.total[i] = sum;
    };
    if constexpr (kCluster) {
      sum_of(exchange.of_warp, warps(), [&](int i, float sum) {
        if (lane < size()) send_to(lane, 1, i, sum);
      });
      await<kCount>(1);
      sum_of(exchange.of_block[1], size(), store_total);
    } else {
      sum_of(exchange.of_warp, warps(), store_total);
    }
    __syncthreads();
    NN_UNROLL
    for (int j = 0; j < kCount; ++j) values[j] = exchange.total[j];
  }
};

}  // namespace nanonet::cuda
