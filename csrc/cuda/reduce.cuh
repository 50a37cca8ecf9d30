// Reductions over rows: the denominators, the means and the loss. No float atomics: every block writes its sums, and
// the block that finishes last adds them in block order.
#pragma once

#include "row.cuh"

namespace nanonet::cuda {

static __device__ unsigned int counters[kCounters];

template <int kK>
struct Reduction {
  double of_warp[kMaxWarps][kK + 1];
  double total[3 * kK];  // first the denominators: of ce, then of each student's soft terms
  float share[3 * kK];   // their reciprocals, for every term and student
  float weight[3];
  int last;
};

template <int kCount>
NN_DEVICE void sum_of_block(double (&values)[kCount], double (*of_warp)[kCount], double* total) {
  for (int offset = 16; offset > 0; offset /= 2) {
    NN_UNROLL
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
  }
  if (threadIdx.x % 32 == 0) {
    NN_UNROLL
    for (int i = 0; i < kCount; ++i) of_warp[threadIdx.x / 32][i] = values[i];
  }
  __syncthreads();
  if (threadIdx.x < kCount) {
    double all = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) all += of_warp[w][threadIdx.x];
    total[threadIdx.x] = all;
  }
  __syncthreads();
}

// The number of labelled rows, and the sum of each student's row weights, over the rows first, first + step, ...
template <int kK>
NN_DEVICE void count(const Call& p, Reduction<kK>& shared, int64_t first, int64_t step) {
  const int64_t rows = first < p.N ? (p.N - 1 - first) / step + 1 : 0;
  int64_t labelled = 0;
  for (int64_t i = 0; p.label && i < rows; i += 4) {
    int64_t label[4];  // four loads in flight
    NN_UNROLL
    for (int j = 0; j < 4; ++j)
      label[j] = i + j < rows ? p.label[(first + (i + j) * step) * p.label_stride] : kUnlabelled;
    NN_UNROLL
    for (int j = 0; j < 4; ++j) labelled += label[j] != kUnlabelled;
  }
  double found[kK + 1];
  found[0] = double(labelled);
  NN_UNROLL
  for (int k = 0; k < kK; ++k) {
    found[1 + k] = p.row_weight.data ? 0 : double(rows);
    for (int64_t i = 0; p.row_weight.data && k < p.K && i < rows; ++i)
      found[1 + k] += value_at(p.row_weight, 0, k, first + i * step);
  }
  sum_of_block(found, shared.of_warp, shared.total);
}

// Writes the weights and the reciprocal denominators (0 for a denominator of 0) of every term and student to shared
// memory.
template <int kK>
NN_DEVICE void set_shares(const Call& p, Reduction<kK>& shared) {
  if (!p.loss) return;
  if (!p.denominators.data) count(p, shared, threadIdx.x, blockDim.x);
  const int i = int(threadIdx.x) / kK, k = int(threadIdx.x) % kK;
  if (i < 3 && k < p.K) {
    const double counted = shared.total[i == 0 ? 0 : 1 + k];
    const double d = p.denominators.data ? double(value_at(p.denominators, i > 0, k)) : counted;
    shared.share[threadIdx.x] = d == 0 ? 0 : float(1 / d);
    if (k == 0) shared.weight[i] = value_at(p.weights, i);
  }
  __syncthreads();
}

// True in every thread of the last of `blocks` blocks to call it; what the others wrote before is visible to it.
NN_DEVICE bool comes_last(const Call& p, int& flag, unsigned blocks) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    flag = atomicAdd(&counters[p.counter], 1u) == blocks - 1;
    if (flag) counters[p.counter] = 0;
  }
  __syncthreads();
  if (flag) __threadfence();
  return flag;
}

// store(i, sum) for each of kCount values: the sum over all blocks, in a fixed order, one warp per value.
template <int kCount, class Store>
NN_DEVICE void sum_of_partials(const double* partials, int blocks, Store store) {
  const int lane = int(threadIdx.x) % 32;
  for (int i = int(threadIdx.x) / 32; i < kCount; i += int(blockDim.x) / 32) {
    double sum = 0;
    for (int b = lane; b < blocks; b += 32) sum += partials[int64_t(b) * kCount + i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (lane == 0) store(i, sum);
  }
}

// `mine` in thread i*kK + k: the block's sum for term i of student k. The last block computes means and loss.
template <int kK>
NN_DEVICE void finish(const Call& p, Reduction<kK>& shared, double mine, int block, int blocks) {
  constexpr int kCount = 3 * kK;
  if (threadIdx.x < kCount) p.partials[int64_t(block) * kCount + threadIdx.x] = mine;
  if (!comes_last(p, shared.last, unsigned(blocks))) return;
  sum_of_partials<kCount>(p.partials, blocks, [&](int i, double sum) {
    shared.total[i] = shared.share[i] == 0 ? 0 : sum * shared.share[i];
  });
  __syncthreads();
  const int i = int(threadIdx.x) / kK, k = int(threadIdx.x) % kK;
  if (i < 3 && k < p.K) p.means[i * p.K + k] = float(shared.total[threadIdx.x]);
  if (threadIdx.x != 0) return;
  double loss = 0;
  for (int j = 0; j < kCount; ++j)
    if (j % kK < p.K && shared.weight[j / kK] != 0) loss += double(shared.weight[j / kK]) * shared.total[j];
  *p.loss = float(loss);
}

// One row: sets its upstream gradients, then runs it.
template <int kK, bool kKlSlopes, class Group, class Source>
NN_DEVICE void run_row(const Call& p, const Reduction<kK>& shared, Group& group, Source& source, int64_t n,
                       float* counted) {
  Row<kK, kKlSlopes, Group, Source> row(p, group, source, n);
  const auto counts = [&](int i, int k) {
    return i == 0 ? float(row.labelled) : p.row_weight.data ? value_at(p.row_weight, 0, k, n) : 1.0f;
  };
  if (p.upstream.data) {
    row.set_upstream([&](int i, int k) { return value_at(p.upstream, i, k, n); });
  } else {
    row.set_upstream([&](int i, int k) {
      return p.loss ? shared.weight[i] * shared.share[i * kK + k] * counts(i, k) : 0.0f;
    });
  }
  row.run(counts, counted);
}

}  // namespace nanonet::cuda
