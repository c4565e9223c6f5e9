//! How to read each number: what it is, and what it does not say.

use serde::Serialize;

#[derive(Serialize)]
pub struct Term {
    pub id: &'static str,
    pub name: &'static str,
    pub text: &'static str,
}

const fn term(id: &'static str, name: &'static str, text: &'static str) -> Term {
    Term { id, name, text }
}

pub const TERMS: &[Term] = &[
    term(
        "kld",
        "KLD mean",
        "Kullback–Leibler divergence of the file's prediction of the next token from the reference's, in nats, averaged over \
         tokens. 0: the same predictions. It sees changes of all probabilities, so it tells files apart where perplexity cannot. \
         It says how different a file is, not how much worse. Differences below the noise floor, or between files that are both \
         below about 0.01, do not rank them: choose among those by size, speed and tasks.",
    ),
    term(
        "interval",
        "95 % interval",
        "What other samples of the same text would give, by resampling whole windows of it. It does not cover other kinds of text. \
         All files are measured on the same tokens, so two files can truly differ although their intervals overlap; where the \
         intervals do not overlap, they do.",
    ),
    term(
        "tail",
        "p99, max",
        "The divergence that 1 in 100 tokens exceeds, and the largest of all. Means hide rare but total changes of mind; these do not. \
         The maximum is one token, and grows with the length of the text.",
    ),
    term(
        "perplexity",
        "perplexity, change",
        "exp of the mean negative log-likelihood of the text; lower is likelier. It depends on the protocol, window length, text and \
         tokenizer: perplexities of different protocols or tokenizers cannot be compared, and published ones rarely can. The change \
         is against the reference on the same tokens. A small change, even a negative one, is no proof of quality: errors that make \
         some tokens likelier and others less cancel in it.",
    ),
    term(
        "top",
        "same top token",
        "How often file and reference find the same token most likely: the share of greedy choices that stay. A change between two \
         tokens that were about equally likely counts in full, so it falls on uncertain text faster than quality does.",
    ),
    term(
        "rms",
        "RMS Δp",
        "Root mean square change of the true token's probability. It is dominated by tokens the reference was unsure of.",
    ),
    term(
        "bpw",
        "size, bits per weight",
        "Bytes of all tensors as stored, scales and embeddings included, and the same divided by the number of weights. Memory at run \
         time also holds the KV cache and working buffers.",
    ),
    term(
        "front",
        "front (●, ○)",
        "A file on the front (●) is not beaten: no other file here is at most as large and at most as far from the reference. \
         ○: some file here is both smaller and closer, or as good in one and better in the other. The front is of this table only, and \
         of the point estimates.",
    ),
    term(
        "positions",
        "KLD by position",
        "The same divergence for predictions made at each range of positions in a window. A rise to the right means that errors \
         accumulate with context, which short windows do not show. Later positions are also more predictable: compare lines at \
         one position rather than along one line.",
    ),
    term(
        "blame",
        "KLD by layer",
        "What the weights of each layer cost in divergence. Costs of layers do not simply add up to that of the file: errors can \
         cancel or amplify each other.",
    ),
    term(
        "weights",
        "relative error",
        "Norm of a weight's error over the norm of the weight. Equal errors cost very different amounts: a large one in a weight that \
         the model hardly uses matters less than a small one where activations are large.",
    ),
    term(
        "kv",
        "KV cache",
        "Keys and values stored in the named type, against an unrounded cache: of the same weights, or of the reference where the \
         table says so, and then f32 shows what the weights lose alone. Bytes per token are those of all layers together: times the \
         length of a conversation, the memory it takes. Colours have fixed steps, so that they mean the same in every report.",
    ),
    term(
        "accuracy",
        "accuracy",
        "Right answers of all, with a Wilson 95 % interval. `acc` compares choices by likelihood, `acc_norm` by likelihood per byte. The \
         items, their prompts and the way of scoring define the number: compare it only with accuracies of the same hash.",
    ),
    term(
        "difference",
        "difference, lost/gained",
        "Against the reference on the same items, in percentage points, with its 95 % interval. Lost: only the reference was right; \
         gained: only the file was. Items that both got right or wrong say nothing about the difference. Many gains beside many losses \
         mean changed behaviour even when accuracy stays.",
    ),
    term(
        "p",
        "p (Holm)",
        "Chance of flips at least this uneven if file and reference were equally good (exact McNemar test). In parentheses: corrected \
         for the number of comparisons made (Holm). A p above 0.05 is no proof of equality.",
    ),
    term(
        "detectable",
        "detectable",
        "The smallest true difference that this number of items would have found in 80 % of trials. A verdict of no detectable loss \
         means no loss of this size or more; smaller losses remain possible.",
    ),
    term(
        "stress",
        "generation",
        "Greedy continuations of the same prompts. First divergence: the token at which half of them have left the reference's text. \
         Leaving it is normal at any loss and not an error by itself; repetition, answers that never end and a changed length are.",
    ),
    term(
        "gate",
        "verdict",
        "PASS: every budget is kept, its interval included. REGRESSION: a budget is exceeded beyond doubt. INCONCLUSIVE: the interval \
         spans the limit; measure more. INVALID: something was not comparable or not a number, so nothing was judged.",
    ),
    term(
        "noise",
        "noise floor",
        "The divergence of the reference from itself: in another batch shape (largest), and with its hidden states rounded to BF16 \
         (mean). What is smaller is arithmetic, not loss.",
    ),
];
