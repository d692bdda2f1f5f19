// The floor: how fast can this machine match the neutral workloads at all?
//
// A small price-time book with nothing around it: no instruments, no phases, no members, no checks, no log. It says what
// the memory and the branches of the problem cost, so that other figures can be read as "times the floor".
//
// What the machine is good at is walking arrays, so everything is an array:
//
// * Orders are rows indexed by the file's id, 16 bytes each, four to a cache line, linked into the queue of their level.
// * Levels are one array: symbol by symbol, tick by tick, from the lowest to the highest price of the file. Both sides
//   share it: a book that is not crossed never has bids and asks at one price.
// * The best bid and the best ask are cursors into that array. They step to the next level with orders; that steps few
//   empty ticks, because books are dense where they trade.
//
// Known before the clock starts: the records in memory, the number of orders, the range of prices. Inside the timing:
// reading each record, matching, cancelling, and writing every trade down. Outside: reading the file, allocation,
// clearing memory between runs, and the checksums, which are computed from the trades that were written down.
//
// Usage: floor FILE.bin [RUNS]      prints one JSON object

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

struct __attribute__((packed)) Record {  // 24 bytes, little-endian
  uint8_t op;                            // 0 new, 1 cancel
  uint8_t side;                          // 0 buy, 1 sell
  uint16_t flags;                        // bit 0: immediate or cancel
  uint32_t symbol;
  int32_t price;  // ticks
  uint32_t quantity;
  uint64_t id;
};
static_assert(sizeof(Record) == 24, "the record format has 24 bytes");

struct Order {
  uint32_t next, previous;  // neighbours in the queue of the level, 0: none
  uint32_t quantity;        // still to trade, 0: not in the book
  uint32_t level_and_side;  // index into the levels, times two, plus side
};
static_assert(sizeof(Order) == 16, "four orders to a cache line");

struct Level {
  uint32_t head, tail;  // oldest and newest order, 0: none
};

struct Trade {
  uint32_t maker, taker;
  int32_t price;
  uint32_t quantity;
  uint32_t symbol;
};

struct Book {         // indices into the levels; a guard level at each end of the symbol's stretch stops the cursors
  uint32_t best_bid;  // the lower guard: no bid
  uint32_t best_ask;  // the upper guard: no ask
};

struct Market {
  int32_t price_low = 0;
  uint32_t stride = 0;  // levels per symbol, guards included
  std::vector<Order> orders;
  std::vector<Level> levels;
  std::vector<Book> books;
  std::vector<Trade> trades;
  size_t trade_count = 0;

  void clear() {
    std::memset(orders.data(), 0, orders.size() * sizeof(Order));
    std::memset(levels.data(), 0, levels.size() * sizeof(Level));
    std::memset(trades.data(), 0, trades.size() * sizeof(Trade));
    for (uint32_t s = 0; s < books.size(); ++s) {
      books[s] = Book{s * stride, (s + 1) * stride - 1};
      levels[books[s].best_bid].head = levels[books[s].best_ask].head = ~0u;
    }
    trade_count = 0;
  }

  // From an emptied best level to the next one that holds orders, or to the guard.
  void step_down(uint32_t& best) {
    do --best;
    while (!levels[best].head);
  }
  void step_up(uint32_t& best) {
    do ++best;
    while (!levels[best].head);
  }

  void submit(const Record& record) {
    Book& book = books[record.symbol];
    const uint32_t id = static_cast<uint32_t>(record.id);
    const uint32_t limit = record.symbol * stride + 1 + static_cast<uint32_t>(record.price - price_low);
    const int32_t price_of_zero = record.price - static_cast<int32_t>(limit);
    const bool buy = record.side == 0;
    uint32_t& best = buy ? book.best_ask : book.best_bid;
    uint32_t open = record.quantity;
    while (buy ? best <= limit : best >= limit) {
      Level& level = levels[best];
      uint32_t maker = level.head;
      do {
        Order& resting = orders[maker];
        const uint32_t quantity = std::min(open, resting.quantity);
        const int32_t price = price_of_zero + static_cast<int32_t>(best);
        trades[trade_count++] = Trade{maker, id, price, quantity, record.symbol};
        open -= quantity;
        resting.quantity -= quantity;
        if (resting.quantity) break;
        maker = resting.next;
      } while (maker && open);
      level.head = maker;
      if (maker) {
        orders[maker].previous = 0;
      } else if (buy) {
        step_up(best);
      } else {
        step_down(best);
      }
      if (!open) return;
    }
    if (record.flags & 1) return;
    Level& level = levels[limit];
    const uint32_t before = level.head ? level.tail : 0;
    orders[id] = Order{0, before, open, limit << 1 | record.side};
    if (before)
      orders[before].next = id;
    else
      level.head = id;
    level.tail = id;
    if (buy)
      book.best_bid = std::max(book.best_bid, limit);
    else
      book.best_ask = std::min(book.best_ask, limit);
  }

  void cancel(const Record& record) {
    Order& order = orders[record.id];
    if (!order.quantity) return;
    order.quantity = 0;
    const uint32_t at = order.level_and_side >> 1;
    Level& level = levels[at];
    if (order.next)
      orders[order.next].previous = order.previous;
    else
      level.tail = order.previous;
    if (order.previous) {
      orders[order.previous].next = order.next;
      return;
    }
    level.head = order.next;
    if (level.head) return;
    Book& book = books[at / stride];
    if (order.level_and_side & 1) {
      if (book.best_ask == at) step_up(book.best_ask);
    } else {
      if (book.best_bid == at) step_down(book.best_bid);
    }
  }
};

[[noreturn]] void stop(const char* text, const char* where, size_t record = 0) {
  std::fprintf(stderr, "floor: %s (%s, record %zu)\n", text, where, record);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) stop("expected FILE.bin [RUNS]", "arguments");
  const int runs = argc == 3 ? std::atoi(argv[2]) : 5;
  if (runs < 1) stop("expected at least one run", argv[2]);

  std::FILE* file = std::fopen(argv[1], "rb");
  if (!file) stop("cannot open the workload", argv[1]);
  std::vector<Record> records;
  Record buffer[4096];
  for (size_t got; (got = std::fread(buffer, sizeof(Record), 4096, file)) > 0;)
    records.insert(records.end(), buffer, buffer + got);
  if (std::ferror(file)) stop("cannot read the workload", argv[1]);
  if (std::ftell(file) % static_cast<long>(sizeof(Record))) stop("expected whole records of 24 bytes", argv[1]);
  std::fclose(file);
  if (records.empty()) stop("expected at least one record", argv[1]);

  // Everything the timed loop trusts is checked here.
  uint64_t id_max = 0;
  uint32_t symbol_max = 0;
  int32_t price_low = INT32_MAX, price_high = INT32_MIN;
  size_t news = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const Record& r = records[i];
    if (r.op > 1 || r.side > 1) stop("expected op and side of 0 or 1", argv[1], i);
    symbol_max = std::max(symbol_max, r.symbol);
    id_max = std::max(id_max, r.id);
    if (r.op == 1) continue;
    if (!r.id || !r.quantity) stop("expected id and quantity above 0", argv[1], i);
    price_low = std::min(price_low, r.price);
    price_high = std::max(price_high, r.price);
    ++news;
  }
  if (!news) stop("expected at least one new order", argv[1]);
  if (id_max > 4 * records.size() || id_max >= UINT32_MAX) stop("expected dense ids: they index an array", argv[1]);
  const int64_t ticks = static_cast<int64_t>(price_high) - price_low + 1;
  const uint64_t level_count = (static_cast<uint64_t>(ticks) + 2) * (uint64_t{symbol_max} + 1);
  if (level_count > (uint64_t{1} << 27)) stop("expected a narrower range of prices or fewer symbols", argv[1]);

  Market market;
  market.price_low = price_low;
  market.stride = static_cast<uint32_t>(ticks) + 2;
  market.orders.resize(id_max + 1);
  market.levels.resize(level_count);
  market.books.resize(symbol_max + 1);
  // A trade ends its maker or its taker, so there are fewer trades than two per order.
  market.trades.resize(2 * news);

  std::vector<double> ns;
  for (int run = 0; run < runs; ++run) {
    market.clear();
    const auto start = std::chrono::steady_clock::now();
    for (const Record& record : records) {
      if (record.op == 0)
        market.submit(record);
      else
        market.cancel(record);
    }
    const auto end = std::chrono::steady_clock::now();
    ns.push_back(std::chrono::duration<double, std::nano>(end - start).count() / static_cast<double>(records.size()));
  }
  std::sort(ns.begin(), ns.end());
  const double median = runs % 2 ? ns[runs / 2] : (ns[runs / 2 - 1] + ns[runs / 2]) / 2;

  std::vector<uint64_t> checksums(symbol_max + 1, 0);
  uint64_t volume = 0, notional = 0, resting = 0, resting_quantity = 0;
  for (size_t i = 0; i < market.trade_count; ++i) {
    const Trade& t = market.trades[i];
    uint64_t& h = checksums[t.symbol];
    h = h * 1000003 + uint64_t{t.maker} * 31 + uint64_t{t.taker} * 17 + static_cast<uint64_t>(int64_t{t.price}) * 7 +
        t.quantity;
    volume += t.quantity;
    notional += static_cast<uint64_t>(t.price) * t.quantity;
  }
  for (const Order& order : market.orders) {
    resting += order.quantity != 0;
    resting_quantity += order.quantity;
  }

  std::printf("{\"ns_best\": %.2f, \"ns_median\": %.2f, \"runs\": %d, \"ops\": %zu, \"symbols\": %u, ", ns.front(), median,
              runs, records.size(), symbol_max + 1);
  std::printf("\"trades\": %zu, \"volume\": %" PRIu64 ", \"notional\": %" PRIu64 ", \"resting\": %" PRIu64 ", ",
              market.trade_count, volume, notional, resting);
  std::printf("\"resting_quantity\": %" PRIu64 ", ", resting_quantity);
  if (symbol_max == 0)
    std::printf("\"checksum\": %" PRIu64 ", ", checksums[0]);
  else
    std::printf("\"checksum\": null, ");
  std::printf("\"checksums\": [");
  for (size_t s = 0; s < checksums.size(); ++s) std::printf("%s%" PRIu64, s ? ", " : "", checksums[s]);
  std::printf("]}\n");
  return 0;
}
