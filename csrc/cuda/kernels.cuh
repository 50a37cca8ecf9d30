// The kernels: which threads share a row, and where the row lies meanwhile.
//
//   small     some lanes of a warp, the row in their registers
//   on chip   a block, or a cluster of blocks (sm_90 on), the row in shared memory: read once
//   sweep     a block, the row read from global memory by every sweep, some chunks ahead, the last one backwards
// The same kernels make the loss with its gradient, the terms with their statistics, and the backward from those: what
// Call asks for decides. Blocks are persistent, rows are dealt to them in a fixed way.
#pragma once

#include "reduce.cuh"
#include "sources.cuh"

namespace nanonet::cuda {

constexpr int kSmallThreads = 128, kCountThreads = 256;
constexpr int kMinWidth = 4;  // lanes of the narrowest row

// Blocks of the small kernel that a processor holds at once: they leave a thread 128, 168 or 255 registers.
constexpr int small_resident(int K, int values) { return values > 4 || K > 4 ? 2 : K > 2 ? 3 : 4; }

// Threads of a block, and blocks that a processor should hold at once: together they leave a thread 128, 168 or 255
// registers, and more threads where each has fewer rows to wait for. Types that are known at run time alone take more.
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
  float counted[3 * kK];  // of this row
  double sum[3 * kK];     // of the block's rows, each of its own thread
};

template <class Shared>
constexpr int shared_bytes() {
  return (int(sizeof(Shared)) + 15) / 16 * 16;
}

template <int kK, bool kKl, int kV>
__global__ void __launch_bounds__(kSmallThreads, small_resident(kK, kV))
    distill_small_kernel(const __grid_constant__ Call p, int width) {
  auto& shared = *reinterpret_cast<SmallShared<kK>*>(shared_memory());
  Lanes lanes{width};
  const int groups = int(blockDim.x) / width, group = int(threadIdx.x) / width;
  set_shares(p, shared.reduction);
  double mine = 0;
  for (int64_t first = int64_t(blockIdx.x) * groups; first < p.N; first += int64_t(gridDim.x) * groups) {
    // a group without a row goes along with the last one: the shuffles need every lane
    const bool is_row = first + group < p.N;
    const int64_t n = is_row ? first + group : p.N - 1;
    LaneRows<kK, kV> source(p, n, lanes.rank(), width, is_row);
    run_row<kK, kKl>(p, shared.reduction, lanes, source, n, shared.counted[group]);
    if (!p.loss) continue;
    __syncthreads();
    const int rows = int(min(p.N - first, int64_t(groups)));
    if (threadIdx.x < 3 * kK && int(threadIdx.x) % kK < p.K)
      for (int g = 0; g < rows; ++g) mine += shared.counted[g][threadIdx.x];
    __syncthreads();
  }
  if (p.loss) finish(p, shared.reduction, mine, int(blockIdx.x), int(gridDim.x));
}

// The rows of a block, or of a cluster. make_source(n, next, is_staged, part, parts): row n, which may lie in place
// already, and after which comes row `next`.
template <int kK, bool kKl, bool kCluster, class MakeSource>
NN_DEVICE void run_blocks(const Call& p, BlockShared<kK>& shared, MakeSource make_source) {
  Blocks<kK, kCluster> group(shared.exchange);
  const int team = int(blockIdx.x) / group.size(), teams = int(gridDim.x) / group.size();
  const int i = int(threadIdx.x);
  const bool sums = p.loss && group.rank() == 0 && i < 3 * kK;
  if (sums) shared.sum[i] = 0;
  set_shares(p, shared.reduction);
  bool is_staged = false, calm = true;
  for (int64_t n = team; n < p.N; n += teams) {
    auto source = make_source(n, n + teams, is_staged, group.rank(), group.size());
    source.calm = calm;
    run_row<kK, kKl>(p, shared.reduction, group, source, n, shared.counted);
    is_staged = source.next_is_staged, calm = source.calm;
    __syncthreads();
    if (!p.loss) continue;
    if (sums && i % kK < p.K) shared.sum[i] += shared.counted[i];
    __syncthreads();
  }
  if (p.loss && group.rank() == 0) finish(p, shared.reduction, sums ? shared.sum[i] : 0, team, teams);
  group.cluster_barrier();  // no block may leave while others send to it
}

template <int kK, bool kKl, bool kBfloat16>
__global__ void __launch_bounds__(threads_of(kK, kKl, kBfloat16), resident(kK, kKl, kBfloat16))
    distill_sweep_kernel(const __grid_constant__ Call p) {
  auto& shared = *reinterpret_cast<BlockShared<kK>*>(shared_memory());
  run_blocks<kK, kKl, false>(p, shared, [&](int64_t n, int64_t, bool, int part, int parts) {
    return GlobalRows<kK, kBfloat16>(p, n, part, parts, shared_memory() + shared_bytes<BlockShared<kK>>());
  });
}

template <int kK, bool kKl, bool kBfloat16, bool kCluster>
__global__ void __launch_bounds__(threads_of(kK, kKl, kBfloat16), resident(kK, kKl, kBfloat16))
    distill_chip_kernel(const __grid_constant__ Call p) {
#if defined(NN_CLUSTERS)
  constexpr bool kRuns = true;
#else
  constexpr bool kRuns = !kCluster;
#endif
  if constexpr (kRuns) {
    auto& shared = *reinterpret_cast<BlockShared<kK>*>(shared_memory());
    run_blocks<kK, kKl, kCluster>(p, shared, [&](int64_t n, int64_t next, bool is_staged, int part, int parts) {
      SharedRows<kK, kBfloat16> rows(p, n, next, part, parts, shared_memory() + shared_bytes<BlockShared<kK>>());
      if (!is_staged) rows.stage();
      return rows;
    });
  }
}

// d_0 and d_1 for a launch over many rows. Each block counts some; the last adds them up into totals (2,K).
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

// data *= factor, which lies on the device; nothing to do where it is 1.
template <class Scalar>
__global__ void distill_scale_kernel(char* data, Dtype dtype, int64_t elements, const Scalar factor) {
  const float scale = value_at(factor, 0);
  if (scale == 1) return;
  const int64_t chunks = elements / kChunk, stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool vectors = past_grid(data, dtype) == 0;
  for (int64_t i = first; vectors && i < chunks; i += stride) {
    char* at = data + i * kChunk * size_of(dtype);
    for (int c = 0; c < kChunk; c += classes_of_piece(dtype)) {
      uint4 piece = *reinterpret_cast<const uint4*>(at + c * size_of(dtype));
      NN_NO_UNROLL
      for (int e = c; e < c + classes_of_piece(dtype); e += 4) {
        float x[4];
        unpack(piece, dtype, e, x);
        NN_UNROLL
        for (float& one : x) one *= scale;
        pack(piece, dtype, e, x);
      }
      store_once(reinterpret_cast<uint4*>(at + c * size_of(dtype)), piece);
    }
  }
  for (int64_t i = (vectors ? chunks * kChunk : 0) + first; i < elements; i += stride) {
    char* at = data + i * size_of(dtype);
    put_one(at, dtype, 0, element_at(at, dtype) * scale);
  }
}

}  // namespace nanonet::cuda
