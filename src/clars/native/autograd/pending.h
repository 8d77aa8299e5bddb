// Squared norms that wait for Python.
//
// Python keeps the accumulators and decides what a backward pass measures (see accumulator.py). It is asked by the first
// layer of a pass, and then delegates the rest: the other layers add their norms here, and Python collects them at its
// next call. To ask at each layer would take longer than a small layer, as the layers' tensors have driven Python out of
// the cache.
#pragma once

#include <mutex>
#include <optional>
#include <unordered_map>

#include "../kernels/kernels.h"

namespace clars {

using Added = std::tuple<std::vector<int64_t>, std::vector<Tensor>>;  // accumulators, and squared norms for each

class Pending {
 public:
  // A tracker's accumulators, to each of which may be added once in a backward pass, from layers that see so many examples.
  void delegate(int64_t tracker, at::IntArrayRef accumulators, int64_t backward_pass, int64_t examples, Measured measured) {
    const std::lock_guard lock(mutex);
    if (backward_pass != pass) waiting.clear();
    pass = backward_pass;
    for (const int64_t accumulator : accumulators) waiting.insert_or_assign(accumulator, Terms{tracker, examples, measured});
  }

  // Takes an accumulator out, as Python has added to it.
  void retract(int64_t accumulator) {
    const std::lock_guard lock(mutex);
    waiting.erase(accumulator);
  }

  // Adds to an accumulator the measured part of the squared norms [B] of all examples, which are still to be formed. Returns
  // which are measured; nothing where Python must be asked.
  std::optional<Measured> add(int64_t accumulator, int64_t backward_pass, const Tensor& squares) {
    const std::optional<Terms> terms = take(accumulator, backward_pass, squares.size(0));
    if (!terms) return std::nullopt;
    const Tensor part = terms->measured.of(squares);  // an operator, which others may watch: not under the lock
    const std::lock_guard lock(mutex);
    auto& [accumulators, parts] = added[terms->tracker];
    accumulators.push_back(accumulator);
    parts.push_back(part);
    return terms->measured;
  }

  // What was added to a tracker's accumulators since the last time.
  Added collect(int64_t tracker) {
    const std::lock_guard lock(mutex);
    const auto found = added.extract(tracker);
    return found ? std::move(found.mapped()) : Added();
  }

 private:
  struct Terms {
    int64_t tracker, examples;
    Measured measured;
  };

  std::optional<Terms> take(int64_t accumulator, int64_t backward_pass, int64_t examples) {
    const std::lock_guard lock(mutex);
    const auto found = waiting.find(accumulator);
    if (backward_pass != pass || found == waiting.end() || found->second.examples != examples) return std::nullopt;
    const Terms terms = found->second;
    waiting.erase(found);
    return terms;
  }

  std::mutex mutex;
  int64_t pass = -1;
  std::unordered_map<int64_t, Terms> waiting;
  std::unordered_map<int64_t, Added> added;  // by tracker: each may be in a thread of its own
};

}  // namespace clars
