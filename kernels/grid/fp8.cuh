// E4M3 weights under scales of rows, of rectangles, of runs of columns, or none.
struct Float8 : FactsOfFloat8 {
    static const bool OFFSET = false, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &shape, i64 row, int col) {
        if (!p.part[1]) return step_only(1.0f);
        int across = (shape.cols + shape.group - 1) / shape.group;
        return step_only(scale_at(p.part[1], row / shape.tall * across + col / shape.group, shape.scales));
    }
    static FN float level_of(const Parts &p, const Shape &shape, i64 row, int col) {
        return e4m3(p.part[0][row * shape.cols + col]);
    }
};
