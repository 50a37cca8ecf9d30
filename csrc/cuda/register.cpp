// The loss ops for CUDA tensors: checks, allocation, the current stream, registration. Through torch's stable ABI
// alone, as csrc/register.cpp does for the CPU. Nothing here waits for the device.
#define USE_CUDA
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <tuple>

#include "../stable.h"
#include "launch.h"

namespace nanonet::cuda {

static std::atomic<bool> serving[kMaxDevices];

void serve(int device_index) {
  if (device_index < 0 || device_index >= kMaxDevices) throw std::out_of_range("nanonet: more than 64 CUDA devices");
  serving[device_index] = true;
}

namespace {

const Device& device_at(int index) {
  static Device devices[kMaxDevices];
  static std::atomic<bool> known[kMaxDevices];
  require(index >= 0 && index < kMaxDevices, "nanonet: more than 64 CUDA devices");
  if (!known[index]) {
    const torch::stable::accelerator::DeviceGuard guard(index);
    const auto get = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, index));
      return value;
    };
    devices[index] = {get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrComputeCapabilityMajor),
                      get(cudaDevAttrMaxSharedMemoryPerBlockOptin), get(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                      has_code_for_current_device()};
    known[index] = true;
  }
  return devices[index];
}

Values values_of(const Tensor& tensor, std::initializer_list<int64_t> strides) {
  Values values{static_cast<const char*>(tensor.const_data_ptr()), dtype_of(tensor), {}};
  std::copy(strides.begin(), strides.end(), values.stride);
  return values;
}

// Contiguous classes, and rows less than 2^32 bytes apart.
Tensor with_contiguous_rows(const Tensor& logits) {
  const int64_t classes = logits.dim() - 1, rows = classes - 1;
  const bool near = logits.size(rows) < 2 || logits.stride(rows) * size_of(dtype_of(logits)) < (int64_t(1) << 32);
  return logits.stride(classes) == 1 && near ? logits : torch::stable::contiguous(logits);
}

// Whether the kernels serve this GPU: it has been checked (nanonet/backends/gate.py) and its architecture was built for.
bool has_code(const Tensor& on) {
  const int index = on.get_device_index();
  const Device& device = device_at(index);
  return device.has_code && serving[index].load(std::memory_order_relaxed);
}

// Whether there are kernels for these logits: not for float64, nor for very many students, classes or rows, nor on a
// GPU that they do not serve.
bool served(const Tensor& student, const Optional& teacher, int64_t divergence) {
  const auto narrow = [](const Tensor& logits) { return dtype_of(logits) != Dtype::kFloat64; };
  return has_code(student) && narrow(student) && (!teacher || narrow(*teacher)) &&
         student.size(1) < (int64_t(1) << 32) && student.size(2) < (int64_t(1) << 30) &&
         student.size(0) <= (has_kl_slopes(divergence) ? kMaxStudents : kMaxStudentsOfAny);
}

// Calls nanonet::uncompiled_<op>, which nanonet/backends/cuda.py defines; its results replace the arguments in the stack.
template <size_t kCount>
void call_uncompiled(const char* op, std::array<StableIValue, kCount>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
}
template <class T>
StableIValue put(const T& value) { return torch::stable::detail::from(value); }
Tensor result(StableIValue value) { return torch::stable::detail::to<Tensor>(value); }

// A launch and the tensors that it points into. Constructing it makes their device current.
struct Work {
  int device_index;
  torch::stable::accelerator::DeviceGuard guard;
  Launch launch{};
  Tensor student;
  Optional teacher;

  explicit Work(const Tensor& logits) : device_index(logits.get_device_index()), guard(device_index), student(logits) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
    launch.stream = static_cast<cudaStream_t>(stream);
    launch.device_index = device_index;
    launch.device = device_at(device_index);
  }

  Work(const Tensor& student_, const Optional& teacher_, const Optional& label, double temperature, int64_t divergence,
       double beta)
      : Work(with_contiguous_rows(student_)) {
    Call& p = launch.call;
    const Dtype dtype = dtype_of(student);
    p.K = int32_t(student.size(0)), p.N = student.size(1), p.C = int32_t(student.size(2));
    p.divergence = int32_t(divergence), p.temperature = float(temperature), p.beta = float(beta);
    const char* data = static_cast<const char*>(student.const_data_ptr());
    for (int k = 0; k < p.K; ++k)
      p.student[k] = {data + k * student.stride(0) * size_of(dtype), student.stride(1) * size_of(dtype), dtype};
    if (teacher_) {
      teacher = with_contiguous_rows(*teacher_);
      const Dtype from = dtype_of(*teacher);
      p.teacher = {static_cast<const char*>(teacher->const_data_ptr()), teacher->stride(0) * size_of(from), from};
    }
    if (label) p.label = static_cast<const int64_t*>(label->const_data_ptr()), p.label_stride = label->stride(0);
  }

  Tensor empty(std::initializer_list<int64_t> sizes, Dtype dtype) const {
    return new_tensor(sizes, dtype, aoti_torch_device_type_cuda(), device_index);
  }
  Tensor floats(std::initializer_list<int64_t> sizes) const { return empty(sizes, Dtype::kFloat32); }
  Tensor new_gradient() const {
    const Call& p = launch.call;
    return empty({p.K, p.N, p.C}, p.student[0].dtype);
  }

  void run() {
    switch (launch.plan.regime) {
      case Regime::kSmall: return launch_small(launch);
      case Regime::kChip: return launch_chip(launch);
      case Regime::kCluster: return launch_cluster(launch);
      default: return launch_sweep(launch);
    }
  }

  // A counter that no other launch in flight uses. The first quarter is handed out in turn to eager launches, the rest to
  // captured launches, which may be replayed at any time.
  uint32_t counter() const {
    static std::atomic<uint32_t> eager, captured;
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(launch.stream, &status));
    constexpr uint32_t kEager = kCounters / 4;
    return status == cudaStreamCaptureStatusNone ? eager++ % kEager : kEager + captured++ % (kCounters - kEager);
  }
};

std::tuple<Tensor, Tensor> distill_terms(const Tensor& student, const Optional& teacher, const Optional& label,
                                         double temperature, int64_t divergence,
                                         double beta) {
  check_logits(student, teacher, label, temperature, divergence);
  if (!served(student, teacher, divergence)) {
    std::array stack{put(student), put(teacher), put(label), put(temperature), put(divergence), put(beta)};
    call_uncompiled("nanonet::uncompiled_distill_terms", stack);
    return {result(stack[0]), result(stack[1])};
  }
  Work work(student, teacher, label, temperature, divergence, beta);
  Call& p = work.launch.call;
  Tensor terms = work.floats({3, p.K, p.N}), stats = work.floats({p.K + 1, p.N, kStats});
  if (p.N == 0) return {terms, stats};
  p.terms = static_cast<float*>(terms.mutable_data_ptr());
  p.stats = static_cast<float*>(stats.mutable_data_ptr());
  work.launch.plan = plan_for(p, work.launch.device);
  work.run();
  return {terms, stats};
}

Tensor distill_terms_backward(const Tensor& dterms, const Tensor& student, const Optional& teacher,
                              const Optional& label, const Tensor& stats_, double temperature, int64_t divergence,
                              double beta) {
  check_logits(student, teacher, label, temperature, divergence);
  if (!served(student, teacher, divergence)) {
    std::array stack{put(dterms), put(student),     put(teacher),    put(label),
                     put(stats_), put(temperature), put(divergence), put(beta)};
    call_uncompiled("nanonet::uncompiled_distill_terms_backward", stack);
    return result(stack[0]);
  }
  check_backward(dterms, student, stats_, Dtype::kFloat32);
  Work work(student, teacher, label, temperature, divergence, beta);
  Call& p = work.launch.call;
  Tensor dstudent = work.new_gradient();
  if (p.N == 0) return dstudent;
  const Tensor stats = stats_.is_contiguous() ? stats_ : torch::stable::contiguous(stats_);
  p.from_stats = true;
  p.stats = static_cast<float*>(const_cast<void*>(stats.const_data_ptr()));
  p.upstream = values_of(dterms, {dterms.stride(0), dterms.stride(1), dterms.stride(2)});
  p.dstudent = static_cast<char*>(dstudent.mutable_data_ptr());
  work.launch.plan = plan_for(p, work.launch.device);
  work.run();
  return dstudent;
}

// Loss and means; the gradient goes into dstudent, (K,N,C) or empty.
std::tuple<Tensor, Tensor> loss_into(Work& work, const Tensor& weights, const Optional& row_weight,
                                     const Optional& denominators, const Tensor& dstudent) {
  check_weights(work.student, weights, row_weight, denominators);
  Launch& launch = work.launch;
  Call& p = launch.call;
  Tensor loss = work.floats({}), means = work.floats({3, p.K});
  p.loss = static_cast<float*>(loss.mutable_data_ptr());
  p.means = static_cast<float*>(means.mutable_data_ptr());
  if (dstudent.dim() == 3) p.dstudent = static_cast<char*>(dstudent.mutable_data_ptr());
  p.weights = values_of(weights, {weights.stride(0)});
  if (row_weight) {
    const bool alike = row_weight->dim() == 1;
    p.row_weight = values_of(*row_weight, {0, alike ? 0 : row_weight->stride(0), row_weight->stride(alike ? 0 : 1)});
  }
  launch.plan = plan_for(p, launch.device);
  const int count_blocks = launch.device.sms;
  const int64_t most = launch.plan.blocks > count_blocks ? launch.plan.blocks : count_blocks;
  const Tensor partials = work.empty({most * 3 * kMaxStudents + 2 * kMaxStudents}, Dtype::kFloat64);
  p.partials = static_cast<double*>(partials.mutable_data_ptr());
  if (denominators) {
    const bool alike = denominators->dim() == 1;
    p.denominators = values_of(*denominators, {denominators->stride(0), alike ? 0 : denominators->stride(1)});
  } else if (p.N > (row_weight ? kWeighedByEveryBlock : kCountedByEveryBlock)) {
    double* totals = p.partials + most * 3 * kMaxStudents;
    p.counter = work.counter();
    launch_count(launch, count_blocks, totals);
    p.denominators = {reinterpret_cast<const char*>(totals), Dtype::kFloat64, {p.K, 1, 0}};
  }
  p.counter = work.counter();
  work.run();
  return {loss, means};
}

std::tuple<Tensor, Tensor, Tensor> distill_loss(const Tensor& student, const Optional& teacher, const Optional& label,
                                                const Tensor& weights, const Optional& row_weight,
                                                const Optional& denominators, double temperature, int64_t divergence,
                                                double beta, bool need_grad) {
  check_logits(student, teacher, label, temperature, divergence);
  if (!served(student, teacher, divergence)) {
    std::array stack{put(student),      put(teacher),     put(label),      put(weights), put(row_weight),
                     put(denominators), put(temperature), put(divergence), put(beta),    put(need_grad)};
    call_uncompiled("nanonet::uncompiled_distill_loss", stack);
    return {result(stack[0]), result(stack[1]), result(stack[2])};
  }
  Work work(student, teacher, label, temperature, divergence, beta);
  const Tensor dstudent = need_grad ? work.new_gradient() : work.empty({0}, dtype_of(student));
  const auto [loss, means] = loss_into(work, weights, row_weight, denominators, dstudent);
  return {loss, means, dstudent};
}

std::tuple<Tensor, Tensor> distill_loss_into_(const Tensor& dstudent, const Tensor& student, const Optional& teacher,
                                              const Optional& label, const Tensor& weights, const Optional& row_weight,
                                              const Optional& denominators, double temperature, int64_t divergence,
                                              double beta) {
  check_logits(student, teacher, label, temperature, divergence);
  if (!served(student, teacher, divergence)) {
    std::array stack{put(dstudent),   put(student),      put(teacher),     put(label),      put(weights),
                     put(row_weight), put(denominators), put(temperature), put(divergence), put(beta)};
    call_uncompiled("nanonet::uncompiled_distill_loss_into_", stack);
    return {result(stack[0]), result(stack[1])};
  }
  Work work(student, teacher, label, temperature, divergence, beta);
  check_dstudent(dstudent, student);
  return loss_into(work, weights, row_weight, denominators, dstudent);
}

void distill_scale_(const Tensor& dstudent, const Tensor& dloss) {
  check_scale(dstudent, dloss);
  if (dtype_of(dstudent) == Dtype::kFloat64 || !has_code(dstudent)) {
    std::array stack{put(dstudent), put(dloss)};
    return call_uncompiled("nanonet::uncompiled_distill_scale_", stack);
  }
  if (dstudent.numel() == 0) return;
  Work work(dstudent);
  launch_scale(work.launch, static_cast<char*>(dstudent.mutable_data_ptr()), dtype_of(dstudent), dstudent.numel(),
               values_of(dloss, {}));
}

}  // namespace
}  // namespace nanonet::cuda

STABLE_TORCH_LIBRARY_IMPL(nanonet, CUDA, library) {
  library.impl("distill_terms", TORCH_BOX(&nanonet::cuda::distill_terms));
  library.impl("distill_terms_backward", TORCH_BOX(&nanonet::cuda::distill_terms_backward));
  library.impl("distill_loss", TORCH_BOX(&nanonet::cuda::distill_loss));
  library.impl("distill_loss_into_", TORCH_BOX(&nanonet::cuda::distill_loss_into_));
  library.impl("distill_scale_", TORCH_BOX(&nanonet::cuda::distill_scale_));
}
