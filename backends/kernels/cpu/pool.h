// A few persistent threads that run one function together and meet at barriers. The calling thread takes part; the rest
// spin for a moment after each run, then sleep, so that an idle worker costs nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidegate {

class Pool {
   public:
    using Work = void (*)(void* with, int thread);

    // Throws std::system_error where the machine gives no more threads.
    Pool(int threads, const int32_t* cpus) : threads_(threads) {
        try {
            for (int t = 1; t < threads; t++) others_.emplace_back([this, t, cpu = cpus[t]] { serve(t, cpu); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Runs work(with, 0 ... threads - 1) and returns when all are done. One caller at a time.
    void run(Work work, void* with) {
        work_ = work, with_ = with;
        release(started_);
        work(with, 0);
        barrier();
    }

    void barrier() {
        if (threads_ == 1) return;
        const uint32_t round = met_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            release(met_);
        } else {
            await(met_, round, kBarrierSpins);
        }
    }

   private:
    static constexpr int kBarrierSpins = 20000;  // about 0.3 ms: longer than any phase is uneven on free cores
    static constexpr int kIdleSpins = 4000;      // about 60 us: the gap between two steps of a busy engine

    static void relax() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    void release(std::atomic<uint32_t>& word) {
        word.fetch_add(1, std::memory_order_seq_cst);
#if defined(__linux__)
        if (sleepers_.load(std::memory_order_seq_cst)) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
#endif
    }

    void await(std::atomic<uint32_t>& word, uint32_t old, int spins) {
        for (int i = 0; i < spins; i++) {
            if (word.load(std::memory_order_acquire) != old) return;
            relax();
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (word.load(std::memory_order_seq_cst) == old) {
#if defined(__linux__)
            syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, 0, 0);
#else
            std::this_thread::yield();
#endif
        }
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

    void serve(int thread, int cpu) {
#if defined(__linux__)
        if (cpu >= 0 && cpu < CPU_SETSIZE) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(pthread_self(), sizeof one, &one);  // best effort: a refused pin costs speed alone
        }
#endif
        for (uint32_t seen = 0;; seen++) {
            await(started_, seen, kIdleSpins);
            if (stopping_.load(std::memory_order_acquire)) return;
            work_(with_, thread);
            barrier();
        }
    }

    void stop() {
        stopping_.store(true, std::memory_order_release);
        release(started_);
        for (auto& thread : others_) thread.join();
        others_.clear();
    }

    const int threads_;
    Work work_ = nullptr;
    void* with_ = nullptr;
    std::vector<std::thread> others_;
    alignas(64) std::atomic<uint32_t> started_{0};
    alignas(64) std::atomic<uint32_t> met_{0};
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<int32_t> sleepers_{0};
    std::atomic<bool> stopping_{false};
};

}  // namespace tidegate
