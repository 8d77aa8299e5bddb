// Bookings that wait for Python.
//
// Python keeps the accounts and decides what a backward pass measures (see account.py). It is asked by the first layer of
// a pass, and then lends the pass: the other layers book here, and Python collects at its next call. To ask at each layer
// would take longer than a small layer, as the layers' tensors have driven Python out of the cache.
#pragma once

#include <mutex>
#include <optional>
#include <unordered_map>

#include "kernels.h"

namespace clars {

using Booked = std::tuple<std::vector<int64_t>, std::vector<Tensor>>;  // accounts, and squared norms for each

class Ledger {
 public:
  // A tracker's accounts that may each book once in a backward pass, from layers that see so many examples.
  void lend(int64_t tracker, at::IntArrayRef accounts, int64_t backward_pass, int64_t examples, Measured measured) {
    const std::lock_guard lock(mutex);
    if (backward_pass != pass) lent.clear();
    pass = backward_pass;
    for (const int64_t account : accounts) lent.insert_or_assign(account, Terms{tracker, examples, measured});
  }

  // Takes an account out, as it has booked by way of Python.
  void withdraw(int64_t account) {
    const std::lock_guard lock(mutex);
    lent.erase(account);
  }

  // Books to an account the measured part of the squared norms [B] of all examples, which are still to be formed. Returns
  // which are measured; nothing where Python must be asked.
  std::optional<Measured> book(int64_t account, int64_t backward_pass, const Tensor& squares) {
    const std::optional<Terms> terms = take(account, backward_pass, squares.size(0));
    if (!terms) return std::nullopt;
    const Tensor part = terms->measured.of(squares);  // an operator, which others may watch: not under the lock
    const std::lock_guard lock(mutex);
    auto& [accounts, parts] = booked[terms->tracker];
    accounts.push_back(account);
    parts.push_back(part);
    return terms->measured;
  }

  // What was booked to a tracker's accounts since the last time.
  Booked collect(int64_t tracker) {
    const std::lock_guard lock(mutex);
    const auto found = booked.extract(tracker);
    return found ? std::move(found.mapped()) : Booked();
  }

 private:
  struct Terms {
    int64_t tracker, examples;
    Measured measured;
  };

  std::optional<Terms> take(int64_t account, int64_t backward_pass, int64_t examples) {
    const std::lock_guard lock(mutex);
    const auto found = lent.find(account);
    if (backward_pass != pass || found == lent.end() || found->second.examples != examples) return std::nullopt;
    const Terms terms = found->second;
    lent.erase(found);
    return terms;
  }

  std::mutex mutex;
  int64_t pass = -1;
  std::unordered_map<int64_t, Terms> lent;
  std::unordered_map<int64_t, Booked> booked;  // by tracker: each may be in a thread of its own
};

}  // namespace clars
