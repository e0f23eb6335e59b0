#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {
namespace {

constexpr int64_t kYieldAfterNs = 20'000;   // a barrier this late has lost its core to somebody: give ours away too
constexpr int64_t kSleepAfterNs = 60'000;   // an idle worker stops spinning
constexpr int kSpinsPerClockRead = 64;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Spin until `value` differs from `old` or `limit_ns` has passed. True if it differs.
bool spin_until_changed(const std::atomic<uint32_t>& value, uint32_t old, int64_t limit_ns) {
  for (int i = 0; i < kSpinsPerClockRead; ++i) {
    if (value.load(std::memory_order_acquire) != old) return true;
    relax();
  }
  const int64_t deadline = now_ns() + limit_ns;
  do {
    for (int i = 0; i < kSpinsPerClockRead; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      relax();
    }
  } while (now_ns() < deadline);
  return false;
}

void pin_self(int32_t cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // best effort: a refused pin costs speed, not results
#else
  (void)cpu;
#endif
}

std::vector<int32_t> usable_cpus() {
  std::vector<int32_t> cpus;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
#endif
  return cpus;
}

}  // namespace

Pool::Pool(int threads, const int32_t* cpus) : threads_(threads < 1 ? 1 : threads) {
  if (cpus != nullptr) {
    cpus_.assign(cpus, cpus + threads_);
  } else {
    cpus_ = usable_cpus();
    if (static_cast<int>(cpus_.size()) < threads_) cpus_.clear();
  }
  workers_.reserve(threads_ - 1);
  for (int tid = 1; tid < threads_; ++tid) workers_.emplace_back([this, tid] { work(tid); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(turn_);
    stop_ = true;
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
}

void Pool::pin_caller() const {
  if (!cpus_.empty()) pin_self(cpus_[0]);
}

void Pool::run(Task task, void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  if (threads_ == 1) {
    task(context, 0, 1);
    return;
  }
  task_ = task;
  context_ = context;
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  epoch_.notify_all();  // no system call unless a worker sleeps
  task(context, 0, threads_);
  barrier();
}

void Pool::barrier() {
  if (threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  if (spin_until_changed(phase_, phase, kYieldAfterNs)) return;
#if defined(__linux__)
  while (phase_.load(std::memory_order_acquire) == phase) sched_yield();
#else
  while (phase_.load(std::memory_order_acquire) == phase) std::this_thread::yield();
#endif
}

void Pool::work(int tid) {
  if (!cpus_.empty()) pin_self(cpus_[tid]);
  // 0, not the present value: run() may have begun the first task before this thread came up.
  for (uint32_t seen = 0;; ++seen) {
    if (!spin_until_changed(epoch_, seen, kSleepAfterNs)) epoch_.wait(seen, std::memory_order_acquire);
    while (epoch_.load(std::memory_order_acquire) == seen) epoch_.wait(seen, std::memory_order_acquire);
    if (stop_) return;
    task_(context_, tid, threads_);
    barrier();
  }
}

}  // namespace headrace
