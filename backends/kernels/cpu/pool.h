// A few persistent threads that walk through the same work together.
//
// On a busy machine a thread may lose its core for milliseconds at any point. So nobody ever waits for a thread, only for
// parts of work somebody holds: a phase is over when its parts are done, whoever did them; a thread that comes late finds
// them gone and catches up; one that missed a whole run is not let into it. (With a barrier of all threads between
// phases a step of 4 ms took 14 to 100 ms beside two busy processes on two cores.) The calling thread takes part. Threads
// keep the process's own affinity: pinned ones cannot leave a core that somebody else is using.
#pragma once
#include <atomic>
#include <climits>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tidegate {

// A counter to wait on: a short spin, then sleep, so that idle threads cost nothing.
class Word {
   public:
    uint32_t get() const { return value_.load(std::memory_order_seq_cst); }

    uint32_t add(uint32_t by) {
        const uint32_t now = value_.fetch_add(by, std::memory_order_seq_cst) + by;
#if defined(__linux__)
        if (sleepers_.load(std::memory_order_seq_cst))
            syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
        return now;
    }

    void clear() { value_.store(0, std::memory_order_relaxed); }

    template <class Enough>
    void await(Enough enough) {
        for (int i = 0; i < kSpins; i++) {
            if (enough(value_.load(std::memory_order_acquire))) return;
            relax();
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        for (uint32_t seen = get(); !enough(seen); seen = get()) {
#if defined(__linux__)
            syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
            std::this_thread::yield();
#endif
        }
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

   private:
    static constexpr int kSpins = 1000;  // about 20 us: longer than parts are uneven, shorter than others mind

    static void relax() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
};

// Work cut into `count` units, handed out in runs; the same count from every thread that takes part.
class alignas(64) Phase {
   public:
    void clear() {
        next_.store(0, std::memory_order_relaxed);
        count_.store(-1, std::memory_order_relaxed);
        done_.clear();
    }

    template <class Use>
    void take_part(int count, int run, Use use) {
        count_.store(count, std::memory_order_relaxed);
        for (;;) {
            const int first = next_.fetch_add(run, std::memory_order_relaxed);
            if (first >= count) return;
            const int last = first + run < count ? first + run : count;
            use(first, last);
            done_.add(uint32_t(last - first));
        }
    }

    // Only after take_part; then everything the phase wrote can be read.
    void await() {
        const uint32_t count = uint32_t(count_.load(std::memory_order_relaxed));
        done_.await([count](uint32_t done) { return done == count; });
    }

    bool is_over() const { return int32_t(done_.get()) == count_.load(std::memory_order_relaxed); }

   private:
    std::atomic<int> next_{0};
    std::atomic<int> count_{-1};
    Word done_;
};

class Pool {
   public:
    using Work = void (*)(void* with, int thread);

    // Throws std::system_error where the machine gives no more threads.
    explicit Pool(int threads) : threads_(threads) {
        try {
            for (int t = 1; t < threads; t++) others_.emplace_back([this, t] { serve(t); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Runs work(with, thread) on this thread and on those that come before it is through; returns when all have left.
    void run(Work work, void* with) {
        work_ = work, with_ = with;
        round_.add(1);
        work(with, 0);
        round_.add(1);
        inside_.await([](uint32_t inside) { return inside == 0; });
    }

   private:
    static constexpr uint32_t kStop = 1u << 31;

    // Odd rounds are open. Entering first and looking again afterwards closes the gap in which `run` could miss us.
    void serve(int thread) {
        for (uint32_t served = 0;;) {
            round_.await([served](uint32_t round) { return round >= kStop || (round % 2 == 1 && round != served); });
            const uint32_t round = round_.get();
            if (round >= kStop) return;
            inside_.add(1);
            if (round % 2 == 1 && round_.get() == round) work_(with_, thread), served = round;
            inside_.add(uint32_t(-1));
        }
    }

    void stop() {
        round_.add(kStop);
        for (auto& thread : others_) thread.join();
        others_.clear();
    }

    const int threads_;
    Work work_ = nullptr;
    void* with_ = nullptr;
    std::vector<std::thread> others_;
    alignas(64) Word round_;
    alignas(64) Word inside_;
};

}  // namespace tidegate
