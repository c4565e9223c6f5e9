// bitsandbytes: codes into a table, two to a byte, the even column high; a float for all columns of a group.
template <class F> struct Coded : F {
    static const bool OFFSET = false, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &shape, i64 row, int col) {
        return step_only(scale_at(p.part[1], (row * shape.cols + col) / shape.group, 0));
    }
    static FN float level_of(const Parts &p, const Shape &shape, i64 row, int col) {
        return F::level(p.part[0][(row * shape.cols + col) / 2] >> (1 - col % 2) * 4 & 15);
    }
};

struct Nf4 : Coded<FactsOfNf4> {};
struct BnbFp4 : Coded<FactsOfBnbFp4> {};
