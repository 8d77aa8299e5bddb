// What the kernels share: examples divided over torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <omp.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace clars {

using at::Tensor;

// A float32 sum over more numbers than this is continued in double precision.
constexpr int64_t SPAN = 2048;

// Calls work(worker, first, last) with a share of the examples for each of `workers`, in parallel.
//
// Operators called inside run on the worker's thread alone. They must also know that they do: a primitive of oneDNN that
// was made for all threads would wait for the others forever. The first call on a thread sets the number to torch's
// (lazily), so that is provoked before the number is set to one; it holds until the parallel region ends.
template <typename Work>
void share(int64_t examples, int64_t workers, const Work& work) {
  at::parallel_for(0, workers, 1, [&](int64_t from, int64_t to) {
    at::AutoDispatchBelowADInplaceOrView no_graph;
    if (at::in_parallel_region()) {
      at::get_num_threads();
      omp_set_num_threads(1);
    }
    for (int64_t worker = from; worker < to; worker++)
      work(worker, worker * examples / workers, (worker + 1) * examples / workers);
  });
}

inline int64_t workers_for(int64_t examples, int64_t most) {
  return std::max<int64_t>(1, std::min<int64_t>({at::get_num_threads(), examples, most}));
}

inline double inner(const float* a, const float* b, int64_t n) {
  double total = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    const int64_t stop = std::min(n, start + SPAN);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < stop; i++) sum += a[i] * b[i];
    total += sum;
  }
  return total;
}

// Adds `n` numbers to `total`, or begins it with them; returns the sum of their squares.
inline double add_and_square(float* total, const float* product, int64_t n, bool begin) {
  double squares = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    const int64_t stop = std::min(n, start + SPAN);
    float sum = 0;
    if (begin) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < stop; i++) {
        total[i] = product[i];
        sum += product[i] * product[i];
      }
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < stop; i++) {
        total[i] += product[i];
        sum += product[i] * product[i];
      }
    }
    squares += sum;
  }
  return squares;
}

}  // namespace clars
