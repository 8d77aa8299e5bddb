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

class Ledger {
 public:
  // Accounts that may each book once in a backward pass, from layers that see so many examples.
  void lend(at::IntArrayRef accounts, int64_t backward_pass, int64_t examples, Measured measured) {
    const std::lock_guard lock(mutex);
    if (backward_pass != pass) lent.clear();
    pass = backward_pass;
    for (const int64_t account : accounts) lent.insert_or_assign(account, Terms{examples, measured});
  }

  // Takes an account out, as it has booked by way of Python.
  void withdraw(int64_t account) {
    const std::lock_guard lock(mutex);
    lent.erase(account);
  }

  // Books to an account the measured part of the squared norms [B] of all examples, which are still to be formed. Returns
  // which are measured; nothing where Python must be asked.
  std::optional<Measured> book(int64_t account, int64_t backward_pass, const Tensor& squares) {
    const std::lock_guard lock(mutex);
    const auto found = lent.find(account);
    if (backward_pass != pass || found == lent.end() || found->second.examples != squares.size(0)) return std::nullopt;
    const Measured measured = found->second.measured;
    lent.erase(found);
    accounts.push_back(account);
    booked.push_back(measured.of(squares));
    return measured;
  }

  // What was booked since the last time.
  std::tuple<std::vector<int64_t>, std::vector<Tensor>> collect() {
    const std::lock_guard lock(mutex);
    return {std::exchange(accounts, {}), std::exchange(booked, {})};
  }

 private:
  struct Terms {
    int64_t examples;
    Measured measured;
  };

  std::mutex mutex;
  int64_t pass = -1;
  std::unordered_map<int64_t, Terms> lent;
  std::vector<int64_t> accounts;
  std::vector<Tensor> booked;
};

}  // namespace clars
