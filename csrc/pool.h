// A fixed team of pinned threads that carries out one task at a time; the caller is one of them.
//
// Owns: its T-1 worker threads. A task is run by all T threads (the caller is tid 0); inside it they meet at barrier().
// Waiting costs: a barrier spins (tens of ns between cores) and yields after ~20 us, so that more threads than cores stay
// correct and do not collapse; after a task workers spin ~60 us for the next one and then sleep in the kernel, so an idle
// pool uses no CPU. One wake per run() is all the kernel sees.
//
//   pool.run(fn, context)             every thread: fn(context, tid, threads); returns when all have returned
//   pool.barrier() inside fn          all threads must call it; what was written before is visible to all after
//
// Who calls: capi_*.cpp and step.cpp. run() may be called from any thread; concurrent calls take turns. Not reentrant.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

class Pool {
 public:
  using Task = void (*)(void* context, int tid, int threads);

  // `cpus`: threads entries, the CPU of each tid (cpus[0] is the caller's, see pin_caller), or null: the CPUs this
  // process may use, in order; workers are left unpinned when there are fewer CPUs than threads.
  Pool(int threads, const int32_t* cpus);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  void run(Task task, void* context);
  void barrier();
  // Pin the calling thread to the CPU of tid 0. For a thread that does little but run(), such as the engine's.
  void pin_caller() const;

 private:
  void work(int tid);

  const int threads_;
  std::vector<int32_t> cpus_;  // empty: not pinned
  std::vector<std::thread> workers_;
  std::mutex turn_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  // Each on a cache line of its own: they are written by one side and spun on by the other.
  alignas(64) std::atomic<uint32_t> epoch_{0};  // grows by one per run(); workers wait for it to change
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // grows by one per completed barrier
};

}  // namespace headrace
