// The row kernels of one instruction set: compiled once for each, with NANONET_ISA and NANONET_VECTOR_BYTES defined.
#include "ranges.h"
#include "rows.h"

#define NN_STRING_(x) #x
#define NN_STRING(x) NN_STRING_(x)

namespace nanonet {
namespace NANONET_ISA {

static bool real_is_double(const Problem& p) { return p.student->dtype == Dtype::kFloat64; }

static void run(const Problem& p, Pass pass, int64_t begin, int64_t end, void* scratch) {
  real_is_double(p) ? run_range<double>(p, pass, begin, end, (char*)scratch)
                    : run_range<float>(p, pass, begin, end, (char*)scratch);
}

static int64_t scratch_bytes(const Problem& p) {
  return real_is_double(p) ? range_bytes<double>(p) : range_bytes<float>(p);
}

static void terms(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  run(p, Pass::kTerms, begin, end, scratch);
}

static void backward(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  run(p, Pass::kBackward, begin, end, scratch);
}

static void loss(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  run(p, Pass::kLoss, begin, end, scratch);
}

template <class F, class T>
static void scale_by(T* data, F factor, int64_t begin, int64_t end) {
  F buffer[kLanes<F>];
  for (int64_t i = begin; i < end; i += kLanes<F>) {
    const int64_t n = end - i < kLanes<F> ? end - i : kLanes<F>;
    store(buffer, load(staged<F, T>(data + i, n, buffer, F(0))) * factor);
    put<F, T>(data + i, buffer, n);
  }
}

static void scale(void* data, Dtype dtype, double factor, int64_t begin, int64_t end) {
  switch (dtype) {
    case Dtype::kFloat32: return scale_by((float*)data, float(factor), begin, end);
    case Dtype::kFloat64: return scale_by((double*)data, factor, begin, end);
    case Dtype::kBfloat16: return scale_by((Bfloat16*)data, float(factor), begin, end);
    default: return scale_by((Float16*)data, float(factor), begin, end);
  }
}

extern const Kernels kernels;
const Kernels kernels = {NN_STRING(NANONET_ISA), scratch_bytes, terms, backward, loss, scale};

}  // namespace NANONET_ISA
}  // namespace nanonet
