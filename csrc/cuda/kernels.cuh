// The kernels: which threads share a row, and where its logits are kept.
//
//   small     up to 32 lanes of a warp; the row is in their registers
//   chip      a block, or a cluster of blocks (from sm_90 on); the row is in shared memory and read once
//   sweep     a block; every sweep reads the row from global memory with prefetching, the last sweep backwards
// Each kernel computes the loss with its gradient, the terms with their statistics, or the backward from statistics,
// depending on the Call. Blocks are persistent, and rows are assigned to them in a fixed way.
#pragma once

#include "block_rows.cuh"
#include "lane_rows.cuh"
#include "reduce.cuh"

namespace nanonet::cuda {

constexpr int kSmallThreads = 128, kCountThreads = 256;
constexpr int kMinWidth = 4;  // lanes of the narrowest row

// Resident blocks of the small kernel per SM: they leave a thread 128, 168 or 255 registers.
constexpr int small_resident(int K, int values) { return values > 4 || K > 4 ? 2 : K > 2 ? 3 : 4; }

// Threads per block, and resident blocks per SM: together they leave a thread 128, 168 or 255 registers. More threads
// where each has fewer rows in flight; dtypes known only at run time need more registers.
constexpr int threads_of(int K, bool kl, bool bfloat16) { return kl && (K <= 2) == bfloat16 ? 256 : 192; }
constexpr int resident(int K, bool kl, bool bfloat16) { return kl && (K <= 2 || (bfloat16 && K <= 4)) ? 2 : 1; }

template <int kK>
struct SmallShared {
  Reduction<kK> reduction;
  float counted[kSmallThreads / kMinWidth][3 * kK];
};

template <int kK>
struct BlockShared {
  Reduction<kK> reduction;
  Exchange<kK> exchange;
  float counted[3 * kK];  // this row's share of the means
  double sum[3 * kK];     // of the block's rows, one thread each
};

template <class Shared>
constexpr int shared_bytes() {
  return (int(sizeof(Shared)) + 15) / 16 * 16;
}

template <int kK, bool kKlSlopes, int kV>
__global__ void __launch_bounds__(kSmallThreads, small_resident(kK, kV))
    distill_small_kernel(const __grid_constant__ Call p, int width) {
  auto& shared = *reinterpret_cast<SmallShared<kK>*>(shared_memory());
  Lanes lanes{width};
  const int groups = int(blockDim.x) / width, group = int(threadIdx.x) / width;
  set_shares(p, shared.reduction);
  double mine = 0;
  for (int64_t first = int64_t(blockIdx.x) * groups; first < p.N; first += int64_t(gridDim.x) * groups) {
    // a group without a row repeats the last one: the shuffles need every lane
    const bool is_row = first + group < p.N;
    const int64_t n = is_row ? first + group : p.N - 1;
    LaneRows<kK, kV> source(p, n, lanes.rank(), width, is_row);
    run_row<kK, kKlSlopes>(p, shared.reduction, lanes, source, n, shared.counted[group]);
    if (!p.loss) continue;
    __syncthreads();
    const int rows = int(min(p.N - first, int64_t(groups)));
    if (threadIdx.x < 3 * kK && int(threadIdx.x) % kK < p.K)
      for (int g = 0; g < rows; ++g) mine += shared.counted[g][threadIdx.x];
    __syncthreads();
  }
  if (p.loss) finish(p, shared.reduction, mine, int(blockIdx.x), int(gridDim.x));
}

// The rows of a block, or of a cluster. make_source(n, next, is_staged, part, parts): row n, already staged or not,
// with row `next` to follow.
template <int kK, bool kKlSlopes, bool kCluster, class MakeSource>
NN_DEVICE void run_blocks(const Call& p, BlockShared<kK>& shared, MakeSource make_source) {
  Blocks<kK, kCluster> group(shared.exchange);
  const int team = int(blockIdx.x) / group.size(), teams = int(gridDim.x) / group.size();
  const int i = int(threadIdx.x);
  const bool sums = p.loss && group.rank() == 0 && i < 3 * kK;
  if (sums) shared.sum[i] = 0;
  set_shares(p, shared.reduction);
  bool is_staged = false, finite = true;
  for (int64_t n = team; n < p.N; n += teams) {
    auto source = make_source(n, n + teams, is_staged, group.rank(), group.size());
    source.finite = finite;
    run_row<kK, kKlSlopes>(p, shared.reduction, group, source, n, shared.counted);
    is_staged = source.next_is_staged, finite = source.finite;
    __syncthreads();
    if (!p.loss) continue;
    if (sums && i % kK < p.K) shared.sum[i] += shared.counted[i];
    __syncthreads();
  }
  if (p.loss && group.rank() == 0) finish(p, shared.reduction, sums ? shared.sum[i] : 0, team, teams);
  group.cluster_barrier();  // a block must not exit while others send to its shared memory
}

template <int kK, bool kKlSlopes, bool kBfloat16>
__global__ void __launch_bounds__(threads_of(kK, kKlSlopes, kBfloat16), resident(kK, kKlSlopes, kBfloat16))
    distill_sweep_kernel(const __grid_constant__ Call p) {
  auto& shared = *reinterpret_cast<BlockShared<kK>*>(shared_memory());
  run_blocks<kK, kKlSlopes, false>(p, shared, [&](int64_t n, int64_t, bool, int part, int parts) {
    return GlobalRows<kK, kBfloat16>(p, n, part, parts, shared_memory() + shared_bytes<BlockShared<kK>>());
  });
}

template <int kK, bool kKlSlopes, bool kBfloat16, bool kCluster>
__global__ void __launch_bounds__(threads_of(kK, kKlSlopes, kBfloat16), resident(kK, kKlSlopes, kBfloat16))
    distill_chip_kernel(const __grid_constant__ Call p) {
#if defined(NN_CLUSTERS)
  constexpr bool kRuns = true;
#else
  constexpr bool kRuns = !kCluster;
#endif
  if constexpr (kRuns) {
    auto& shared = *reinterpret_cast<BlockShared<kK>*>(shared_memory());
    run_blocks<kK, kKlSlopes, kCluster>(p, shared, [&](int64_t n, int64_t next, bool is_staged, int part, int parts) {
      SharedRows<kK, kBfloat16> rows(p, n, next, part, parts, shared_memory() + shared_bytes<BlockShared<kK>>());
      if (!is_staged) rows.stage();
      return rows;
    });
  }
}

// d_0 and d_1 of many rows. Each block counts some of them; the last block adds up and writes totals (2,K).
template <int kK>
__global__ void __launch_bounds__(kCountThreads) distill_count_kernel(const __grid_constant__ Call p, double* totals) {
  auto& shared = *reinterpret_cast<Reduction<kK>*>(shared_memory());
  count(p, shared, int64_t(blockIdx.x) * blockDim.x + threadIdx.x, int64_t(gridDim.x) * blockDim.x);
  if (threadIdx.x <= kK) p.partials[int64_t(blockIdx.x) * (kK + 1) + threadIdx.x] = shared.total[threadIdx.x];
  if (!comes_last(p, shared.last, gridDim.x)) return;
  const int blocks = int(gridDim.x), i = int(threadIdx.x);
  sum_of_partials<kK + 1>(p.partials, blocks, [&](int value, double sum) { shared.total[value] = sum; });
  __syncthreads();
  if (i < 2 * p.K) totals[i] = shared.total[i < p.K ? 0 : 1 + i - p.K];
}

// data *= factor, which is on the device; returns at once if it is 1.
template <class Scalar>
__global__ void distill_scale_kernel(char* data, Dtype dtype, int64_t elements, const Scalar factor) {
  const float scale = value_at(factor, 0);
  if (scale == 1) return;
  const int64_t chunks = elements / kChunk, stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool aligned = misalignment(data, dtype) == 0;
  for (int64_t i = first; aligned && i < chunks; i += stride) {
    char* at = data + i * kChunk * size_of(dtype);
    for (int c = 0; c < kChunk; c += classes_of_vector(dtype)) {
      uint4 vector = *reinterpret_cast<const uint4*>(at + c * size_of(dtype));
      NN_NO_UNROLL
      for (int e = c; e < c + classes_of_vector(dtype); e += 4) {
        float x[4];
        unpack(vector, dtype, e, x);
        NN_UNROLL
        for (float& one : x) one *= scale;
        pack(vector, dtype, e, x);
      }
      store_streaming(reinterpret_cast<uint4*>(at + c * size_of(dtype)), vector);
    }
  }
  for (int64_t i = (aligned ? chunks * kChunk : 0) + first; i < elements; i += stride) {
    char* at = data + i * size_of(dtype);
    store_one(at, dtype, 0, element_at(at, dtype) * scale);
  }
}

}  // namespace nanonet::cuda
