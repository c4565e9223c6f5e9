// CUDA's language for a C++ compiler: enough of it to run kernels on the CPU, one block after the other, each thread a fiber. Barriers
// and shuffles are real: a fiber waits there until all of its block, or warp, have come. A barrier that some never reach is found.
// Put in front of the sources; not a model of a card's speed, memory or float units.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define FN inline
#define KERNEL static void
#define KERNEL_OF(threads, blocks) static void
#define CONSTANT static const
#define __shared__ static
#define __device__
#define __forceinline__ inline

struct uint3 {
    unsigned x, y, z;
};
static uint3 threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
using std::fabs;

namespace host {

enum State { RUNNABLE, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
    std::vector<char> stack;
    jmp_buf at;
    State state;
    float slot;
};

// Those who wait know their places, which must not move.
static std::deque<Fiber> fibers;
// A context is entered once; from then on jumps, which ask nothing of the system, go from one to the other.
static ucontext_t entry;
static jmp_buf scheduler;
static unsigned current, threads;
static void (*body)(void *);
static void *argument;

static void wait(State state) {
    Fiber &f = fibers[current];
    f.state = state;
    if (!_setjmp(f.at)) _longjmp(scheduler, 1);
}

// A fiber serves one thread after the other.
static void start() {
    for (wait(DONE);; wait(DONE)) body(argument);
}

static void resume(Fiber &f) {
    if (!_setjmp(scheduler)) _longjmp(f.at, 1);
}

static void prepare(unsigned count) {
    while (fibers.size() < count) {
        current = unsigned(fibers.size());
        fibers.emplace_back();
        Fiber &f = fibers.back();
        f.stack.resize(64 << 10);
        getcontext(&entry);
        entry.uc_stack.ss_sp = f.stack.data();
        entry.uc_stack.ss_size = f.stack.size();
        entry.uc_link = nullptr;
        makecontext(&entry, start, 0);
        if (!_setjmp(scheduler)) setcontext(&entry);
    }
}

// Releases those that wait at a barrier that all living fibers of `from..until` have reached.
static bool release(unsigned from, unsigned until, State barrier) {
    unsigned waiting = 0, living = 0;
    for (unsigned n = from; n < until; n++) living += fibers[n].state != DONE, waiting += fibers[n].state == barrier;
    if (waiting == 0 || waiting < living) return false;
    for (unsigned n = from; n < until; n++)
        if (fibers[n].state == barrier) fibers[n].state = RUNNABLE;
    return true;
}

// False: some wait for others that never come.
static bool run_block(bool reverse) {
    for (unsigned n = 0; n < threads; n++) fibers[n].state = RUNNABLE;
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) {
            current = reverse ? threads - 1 - i : i;
            Fiber &f = fibers[current];
            if (f.state == RUNNABLE) {
                threadIdx = {current % blockDim.x, current / blockDim.x, 0};
                resume(f);
            }
            done += f.state == DONE;
        }
        if (done == threads) return true;
        bool moved = false;
        for (unsigned warp = 0; warp < threads; warp += 32) moved |= release(warp, min(warp + 32, threads), AT_WARP);
        moved |= release(0, threads, AT_BLOCK);
        for (unsigned n = 0; n < threads && !moved; n++) moved = fibers[n].state == RUNNABLE;
        if (!moved) return false;
    }
}

template <class... A> struct Call {
    void (*kernel)(A...);
    std::tuple<A...> arguments;
    static void go(void *self) {
        Call *call = static_cast<Call *>(self);
        std::apply(call->kernel, call->arguments);
    }
};

template <class T> static T argument_at(void *from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

template <class... A, size_t... I>
static bool launch(void (*kernel)(A...), const unsigned *shape, void **args, bool reverse, std::index_sequence<I...>) {
    Call<A...> call = {kernel, std::tuple<A...>(argument_at<A>(args[I])...)};
    body = Call<A...>::go;
    argument = &call;
    gridDim = {shape[0], shape[1], 1};
    blockDim = {shape[2], shape[3], 1};
    threads = shape[2] * shape[3];
    prepare(threads);
    unsigned blocks = shape[0] * shape[1];
    for (unsigned i = 0; i < blocks; i++) {
        unsigned block = reverse ? blocks - 1 - i : i;
        blockIdx = {block % shape[0], block / shape[0], 0};
        if (!run_block(reverse)) return false;
    }
    return true;
}

// shape: blocks across and down, threads across and down. `reverse` runs all in the opposite order: a missing barrier shows.
template <class... A> static bool launch(void (*kernel)(A...), const unsigned *shape, void **args, bool reverse) {
    return launch(kernel, shape, args, reverse, std::index_sequence_for<A...>{});
}

static unsigned lane() { return current % 32; }

static float exchange(float x, unsigned from) {
    unsigned warp = current - lane();
    fibers[current].slot = x;
    wait(AT_WARP);
    float out = fibers[warp + from % 32].slot;
    wait(AT_WARP);
    return out;
}

} // namespace host

static inline void __syncthreads() { host::wait(host::AT_BLOCK); }
static inline float __shfl_sync(unsigned, float x, int from) { return host::exchange(x, from); }
static inline float __shfl_xor_sync(unsigned, float x, int mask) { return host::exchange(x, host::lane() ^ mask); }
