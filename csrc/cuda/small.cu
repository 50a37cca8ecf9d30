// Rows in registers; what goes over rows or elements alone; the plan.
#include <optional>

#include "launch.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl, int kV>
static void run(const Launch& l) {
  distill_small_kernel<kK, kKl, kV>
      <<<l.plan.blocks, kSmallThreads, sizeof(SmallShared<kK>), l.stream>>>(l.call, l.plan.width);
  check(cudaGetLastError());
}

bool has_code_for_current_device() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, distill_scale_kernel<Values>);
  if (status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction) check(status);
  else cudaGetLastError();
  return status == cudaSuccess;
}

static std::optional<Wish> wished;

void wish_for(const Wish* wish) { wished = wish ? std::optional(*wish) : std::nullopt; }
Plan plan_for(const Call& call, const Device& device) { return plan_of(call, device, wished ? &*wished : nullptr); }

void launch_small(const Launch& l) {
  with_kernel(l.call, true, [&]<int kK, bool kKl, bool>() {
    if constexpr (kK <= 4)
      if (l.plan.values == 8) return run<kK, kKl, 8>(l);
    run<kK, kKl, 4>(l);
  });
}

void launch_count(const Launch& l, int blocks, double* totals) {
  distill_count_kernel<kMaxStudents>
      <<<blocks, kCountThreads, sizeof(Reduction<kMaxStudents>), l.stream>>>(l.call, totals);
  check(cudaGetLastError());
}

void launch_scale(const Launch& l, char* data, Dtype dtype, int64_t elements, const Values& factor) {
  const int64_t wanted = elements / (kChunk * kCountThreads) + 1, most = int64_t(l.device.processors) * 8;
  const int blocks = int(wanted < most ? wanted : most);
  distill_scale_kernel<<<blocks, kCountThreads, 0, l.stream>>>(data, dtype, elements, factor);
  check(cudaGetLastError());
}

}  // namespace nanonet::cuda
