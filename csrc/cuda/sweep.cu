// Rows in global memory.
#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl, bool kBfloat16>
static void run(const Launch& l) {
  static bool allowed[kMaxDevices];
  const auto kernel = distill_sweep_kernel<kK, kKl, kBfloat16>;
  allow_shared_memory(kernel, l, allowed);
  const size_t bytes = size_t(sweep_bytes<kK, kKl, kBfloat16>(l.call));
  kernel<<<l.plan.blocks, threads_of(kK, kKl, kBfloat16), bytes, l.stream>>>(l.call);
  check(cudaGetLastError());
}

void launch_sweep(const Launch& l) {
  with_kernel(l.call, all_bfloat16(l.call), [&]<int kK, bool kKl, bool kBfloat16>() { run<kK, kKl, kBfloat16>(l); });
}

}  // namespace nanonet::cuda
