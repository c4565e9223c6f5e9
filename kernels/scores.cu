// Softmax statistics of logits, a part of the vocabulary at a time: what `src/device/cpu/scores.rs` gathers, a block for a position.

// One position of one model; sums are relative to the largest logit so far.
struct Running {
    float largest;
    u32 top;
    double sum;
    float target, unused;
};

FN double rescaled(float from, float to) { return from == to ? 1.0 : exp(double(from - to)); }

// Takes in `n` logits of tokens from `first` on; `target` is the token that came next.
FN void take(Running &running, const float *logits, int n, u32 first, u32 target) {
    float largest = -infinity();
    for (int i = threadIdx.x; i < n; i += blockDim.x) largest = fmaxf(largest, logits[i]);
    largest = over_block<Largest>(largest);
    // The first place of it.
    int place = n;
    for (int i = int(threadIdx.x); i < n && place == n; i += blockDim.x)
        if (logits[i] == largest) place = i;
    place = -over_block<Largest>(-place);
    if (largest > running.largest) {
        running.sum *= rescaled(running.largest, largest);
        running.largest = largest;
        running.top = first + u32(place);
    }
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += double(exponential(logits[i] - running.largest));
    running.sum += over_block<Add>(sum);
    if (target >= first && target - first < u32(n)) running.target = logits[target - first];
}

// The reference p and a model q, `[positions][n]`, and what was gathered of both; `gaps`: the sum of e^(p - largest p) (p - q).
KERNEL scores(const float *p, const float *q, int n, int first, const u32 *targets, Running *reference, Running *model, double *gaps) {
    i64 at = blockIdx.x;
    p += at * n;
    q += at * n;
    Running r = reference[at], m = model[at];
    float before = r.largest;
    take(r, p, n, u32(first), targets[at]);
    take(m, q, n, u32(first), targets[at]);
    double gap = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) gap += double(exponential(p[i] - r.largest) * (p[i] - q[i]));
    gap = over_block<Add>(gap);
    if (threadIdx.x == 0) {
        gaps[at] = gaps[at] * rescaled(before, r.largest) + gap;
        reference[at] = r;
        model[at] = m;
    }
}
