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

constexpr int kMaxWarps = 16, kMaxCluster = 16;  // clusters above 8 blocks have to be asked for

// Shared memory of a block group of K students at most.
template <int kK>
struct Exchange {
  static constexpr int kValues = 3 * (kK + 1);
  float of_warp[kMaxWarps][kValues];
  float of_block[2][kMaxCluster][kValues];  // what the blocks of the cluster have sent: statistics; sums
  Mailbox mailbox[2];                       // of these
  float total[kValues];
};

// A block, or all blocks of a cluster, which send one another what they have found.
//
// A block sends its statistics of a row only when it has the sums of the row before from every other, and these send
// their sums only after they have read all statistics: so nothing that is unread is written over; and likewise the sums.
// A row that calls sum() twice needs a barrier between.
template <int kK, bool kCluster>
struct Blocks {
  Exchange<kK>& exchange;
  uint32_t phases = 0;  // bit i: whether an odd number of phases of mailbox i is over

  NN_DEVICE explicit Blocks(Exchange<kK>& exchange) : exchange(exchange) {
    if constexpr (kCluster) {
      if (threadIdx.x < 2) open_mailbox(&exchange.mailbox[threadIdx.x]);
      cluster_barrier();
    }
  }

  NN_DEVICE bool leader() const { return threadIdx.x == 0 && rank() == 0; }
  NN_DEVICE bool serves(int k) const { return int(threadIdx.x) == k % warps() * 32 && rank() == 0; }
  NN_DEVICE static bool all(bool ours) { return ours; }  // every thread of the group has the same row's

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
  NN_DEVICE static void set(float* v, const Statistics& s) { v[0] = s.top, v[1] = s.soft, v[2] = s.plain; }

  // Until every block of the cluster has sent kCount values to this mailbox.
  template <int kCount>
  NN_DEVICE void await(int mailbox) {
    if (threadIdx.x == 0) expect(&exchange.mailbox[mailbox], uint32_t(size() * kCount * sizeof(float)));
    receive(&exchange.mailbox[mailbox], phases >> mailbox & 1);
    phases ^= 1u << mailbox;
  }
  NN_DEVICE void send_to(int block, int mailbox, int i, float value) const {
    send(&exchange.of_block[mailbox][rank()][i], value, &exchange.mailbox[mailbox], uint32_t(block));
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
    // row i of the parts, a part a lane
    const auto merged_row = [&](int i, const float (*part)[Exchange<kK>::kValues], int parts) {
      Statistics one[1] = {{kLowest, 0, 0}};
      if (lane < parts) one[0] = at(part[lane] + 3 * i);
      Lanes{16}.merge(one, per_logit);
      return one[0];
    };
    for (int i = warp(); i < kCount; i += warps()) {
      const Statistics ours = merged_row(i, exchange.of_warp, warps());
      if constexpr (kCluster) {
        const float values[3] = {ours.top, ours.soft, ours.plain};
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
    // two values a warp; keep(value, part, sum) in the lane of each part
    const int lane = int(threadIdx.x) % 16, half = int(threadIdx.x) % 32 / 16;
    const auto sum_of = [&](const float (*part)[Exchange<kK>::kValues], int parts, auto keep) {
      for (int first = 2 * warp(); first < kCount; first += 2 * warps()) {
        const int i = first + half;
        float one[1] = {i < kCount && lane < parts ? part[lane][i] : 0.0f};
        Lanes{16}.sum(one);
        if (i < kCount) keep(i, one[0]);
      }
    };
    const auto keep_total = [&](int i, float sum) {
      if (lane == 0) exchange.total[i] = sum;
    };
    if constexpr (kCluster) {
      sum_of(exchange.of_warp, warps(), [&](int i, float sum) {
        if (lane < size()) send_to(lane, 1, i, sum);
      });
      await<kCount>(1);
      sum_of(exchange.of_block[1], size(), keep_total);
    } else {
      sum_of(exchange.of_warp, warps(), keep_total);
    }
    __syncthreads();
    NN_UNROLL
    for (int j = 0; j < kCount; ++j) values[j] = exchange.total[j];
  }
};

}  // namespace nanonet::cuda
