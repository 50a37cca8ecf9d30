// The tensors of a call, and the problem that points into them.
#pragma once

#include "arguments.h"

namespace nanonet {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// A thread keeps it between calls.
inline Workspace& call_memory() {
  static thread_local Workspace workspace;
  return workspace;
}

struct Options {
  double temperature;
  int64_t divergence;
  double beta;
};

// Students: one tensor of all, or one each.
struct Call {
  std::vector<Tensor> student;
  Optional teacher, label;
  Shape shape;
  Dtype dtype, real;  // of the students; of everything that is no logit
  Problem problem{};
  Rows teacher_rows;

  Call(const Tensor& student_, const Optional& teacher_, const Optional& label_, const Options& options)
      : Call(&student_, 0, teacher_, label_, options) {}
  Call(const std::vector<Tensor>& each, const Optional& teacher_, const Optional& label_, const Options& options)
      : Call(first_of(each), each.size(), teacher_, label_, options) {}

  bool wide() const { return real == Dtype::kFloat64; }
  int64_t KN() const { return problem.K * problem.N; }

  // Room for an array of reals: 0 and 1 hold (3,K,N), 2 holds (K,N).
  void* values(int which) const { return reinterpret_cast<char*>(students + problem.K) + which * 3 * KN() * 8; }

  // The leading shape between other dimensions.
  struct Around {
    std::array<int64_t, kMostDims + 2> sizes;
    size_t count;
    operator Sizes() const { return {sizes.data(), count}; }
  };
  Around around(std::initializer_list<int64_t> before, std::initializer_list<int64_t> after) const {
    Around all{{}, 0};
    for (int64_t size : before) all.sizes[all.count++] = size;
    for (int64_t i = 0; i < shape.dims; ++i) all.sizes[all.count++] = shape.leading[size_t(i)];
    for (int64_t size : after) all.sizes[all.count++] = size;
    return all;
  }
  // A gradient's: (K,...,C), or the student's own where it has no K.
  Around gradient_sizes() const {
    return shape.stacked || !single ? around({problem.K}, {problem.C}) : around({}, {problem.C});
  }

 private:
  Rows* students;
  bool single;

  static const Tensor* first_of(const std::vector<Tensor>& each) {
    require(!each.empty(), "student: expected one tensor or more");
    return each.data();
  }

  Call(const Tensor* given, size_t count, const Optional& teacher_, const Optional& label_, const Options& options)
      : shape(shape_of(*given, count, teacher_, label_)), dtype(dtype_of(*given)), single(count == 0) {
    require(options.temperature > 0, "temperature: expected a number above 0");
    require(options.divergence >= 0 && options.divergence < kDivergences, "divergence: no such number");
    real = dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
    Problem& p = problem;
    p.K = shape.K, p.N = shape.N, p.C = shape.C;
    p.temperature = options.temperature, p.divergence = options.divergence, p.beta = options.beta;
    students = reinterpret_cast<Rows*>(call_memory().get(p.K * int64_t(sizeof(Rows)) + (7 * KN() + p.N) * 8));
    p.student = students;
    if (single) {
      student.push_back(readable(*given, shape.stacked, shape.dims));
      const Rows rows = rows_of(student[0], shape.stacked, shape.dims);
      const int64_t step = shape.stacked ? student[0].stride(0) * size_of(dtype) : 0;
      for (int64_t k = 0; k < p.K; ++k) students[k] = rows, students[k].data += k * step;
    }
    for (size_t k = 0; k < count; ++k) {
      require(shape.is(given[k], 0, 1) && given[k].size(shape.dims) == p.C && dtype_of(given[k]) == dtype &&
                  same_device(given[k], *given),
              "student: expected tensors of one shape, dtype and device");
      student.push_back(readable(given[k], 0, shape.dims));
      students[k] = rows_of(student[k], 0, shape.dims);
    }
    if (teacher_) {
      require(same_device(*teacher_, *given), "teacher: expected on student's device");
      teacher = readable(*teacher_, 0, shape.dims);
      teacher_rows = rows_of(*teacher, 0, shape.dims);
      p.teacher = &teacher_rows;
    }
    if (label_) take_labels(*label_);
  }

  void take_labels(const Tensor& given) {
    require(same_device(given, student[0]), "label: expected on student's device");
    const bool narrow = given.scalar_type() == ScalarType::Int;
    require(narrow || given.scalar_type() == ScalarType::Long, "label: expected int64 or int32");
    label = given;
    if (narrow || !given.is_contiguous()) {
      int64_t* copy = static_cast<int64_t*>(values(2)) + KN();
      copy_labels(given, copy);
      problem.label = copy;
    } else {
      problem.label = static_cast<const int64_t*>(given.const_data_ptr());
    }
    check_labels(problem.label, shape);
  }
};

}  // namespace nanonet
