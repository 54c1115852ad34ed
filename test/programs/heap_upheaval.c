// Much memory (N MiB, the first argument; 96 without one) to which everything happens that can happen to memory, every M
// milliseconds (the second; 5 without one): pages written, given back, unmapped and mapped again at the same address, moved, made
// huge and split again, merged with equal ones, shared with a child that writes, filled by the kernel.
// With a third argument a child does what can be done to the memory of another process, which sleeps: process_vm_writev, /proc/PID/mem.
#include "test.h"
#include <sys/uio.h>

#define WORDS (PAGE / 8)
enum { CHUNK_PAGES = 1024, MAX_CHUNKS = 64 };
#define CHUNK (CHUNK_PAGES * PAGE)

static size_t chunks;
static char *heap;
static uint64_t *wanted; // what each page has in one of its words; 0 for a page of zeros
static uint64_t *rounds; // shared, like the line above, with the child that writes
static int ends[2];
static pid_t child, parent;

static uint64_t choose(uint64_t limit, uint64_t salt) { return pattern_word(*rounds * 16 + salt, salt) % limit; }

static size_t any_page(uint64_t salt) { return choose(chunks * CHUNK_PAGES, salt); }

static char *page_at(size_t page) { return heap + page * PAGE; }

static uint64_t *word_of(size_t page) { return (uint64_t *)page_at(page) + page % WORDS; }

static uint64_t next_value(uint64_t salt) { return *rounds * 64 + salt + 1; }

static void put(size_t page, uint64_t value) { *word_of(page) = wanted[page] = value; }

static void put_some(void) {
  for (int i = 0; i < 16; i++) put(any_page(i), next_value(i));
}

static void forget(size_t page, size_t count) { memset(wanted + page, 0, count * sizeof *wanted); }

static void give_back(void) {
  size_t page = any_page(20);
  MUST(madvise(page_at(page), PAGE, MADV_DONTNEED));
  forget(page, 1);
}

static void *map_at(char *address, size_t size) {
  return (void *)MUST(mmap(address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
}

// In the middle of it memory and what is known of it differ, but whoever comes back goes on from there.
static void map_again(void) {
  size_t page = choose(chunks, 21) * CHUNK_PAGES;
  MUST(munmap(page_at(page), CHUNK));
  map_at(page_at(page), CHUNK);
  forget(page, CHUNK_PAGES);
  for (size_t i = 0; i < CHUNK_PAGES; i += 2) put(page + i, next_value(i));
}

static void swap_chunks(void) {
  size_t first = choose(chunks, 22), second = (first + 1 + choose(chunks - 1, 23)) % chunks;
  char *a = heap + first * CHUNK, *b = heap + second * CHUNK;
  char *between = map_anon(CHUNK, PROT_NONE);
  int how = MREMAP_MAYMOVE | MREMAP_FIXED;
  MUST(mremap(a, CHUNK, CHUNK, how, between));
  MUST(mremap(b, CHUNK, CHUNK, how, a));
  MUST(mremap(between, CHUNK, CHUNK, how, b));
  for (size_t i = 0; i < CHUNK_PAGES; i++) {
    uint64_t kept = wanted[first * CHUNK_PAGES + i];
    wanted[first * CHUNK_PAGES + i] = wanted[second * CHUNK_PAGES + i];
    wanted[second * CHUNK_PAGES + i] = kept;
  }
}

static void huge(void) {
  char *chunk = heap + choose(chunks, 24) * CHUNK;
  madvise(chunk, CHUNK, MADV_HUGEPAGE); // not every kernel has them
  madvise(chunk, CHUNK, 25 /* MADV_COLLAPSE */);
  size_t page = (size_t)(chunk - heap) / PAGE + choose(CHUNK_PAGES, 25);
  MUST(madvise(page_at(page), PAGE, MADV_DONTNEED));
  forget(page, 1);
  MUST(mprotect(page_at(page), PAGE, PROT_READ));
  MUST(mprotect(page_at(page), PAGE, PROT_READ | PROT_WRITE));
  madvise(chunk, CHUNK, MADV_NOHUGEPAGE);
}

static void merge(void) {
  char *chunk = heap + choose(chunks, 26) * CHUNK;
  madvise(chunk, CHUNK, MADV_MERGEABLE);
  madvise(chunk, CHUNK, 21 /* MADV_PAGEOUT */);
  put_some();
  madvise(chunk, CHUNK, MADV_UNMERGEABLE);
}

static void fork_and_write(void) {
  pid_t pid = (pid_t)MUST(fork());
  if (pid == 0) {
    for (int i = 0; i < 64; i++) *word_of(any_page(i)) = 1;
    _exit(0);
  }
  put_some();
  MUST(waitpid(pid, NULL, 0));
  put_some();
}

static void kernel_fills(void) {
  size_t page = any_page(27);
  uint64_t value = next_value(27);
  MUST(write(ends[1], &value, sizeof value));
  MUST(read(ends[0], word_of(page), sizeof value));
  wanted[page] = value;
}

static void other_fills(size_t page, uint64_t value) {
  struct iovec from = {&value, sizeof value}, to = {word_of(page), sizeof value};
  if (page % 2 == 0) MUST(process_vm_writev(parent, &from, 1, &to, 1, 0) == sizeof value ? 0 : -1);
  else {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/mem", parent);
    int memory = (int)MUST(open(path, O_WRONLY | O_CLOEXEC));
    MUST(pwrite(memory, &value, sizeof value, (off_t)(uintptr_t)word_of(page)) == sizeof value ? 0 : -1);
    close(memory);
  }
  wanted[page] = value;
}

static void tick(void) {
  static void (*const all[])(void) = {give_back, map_again, swap_chunks, huge, merge, fork_and_write, kernel_fills, put_some};
  ++*rounds;
  all[choose(COUNT(all), 30)]();
  other_fills(any_page(31), next_value(31));
}

static void tick_from_outside(void) {
  ++*rounds;
  for (int i = 0; i < 16; i++) other_fills(any_page(i), next_value(i));
}

static void check(void) {
  // The child stands between two rounds while we look.
  if (child != 0) ask_child(child);
  for (size_t page = 0; page < chunks * CHUNK_PAGES; page++) {
    uint64_t *word = word_of(page), value = *word;
    EXPECT(value == wanted[page], "page %zu has %lx, wanted %lx, in round %lu", page, value, wanted[page], *rounds);
    if (page % 16 != *rounds % 16 || value == 0) continue;
    *word = 0;
    EXPECT(all_zero(page_at(page), PAGE), "page %zu has more than was written", page);
    *word = value;
  }
  if (child == 0) return;
  kill(child, SIGUSR1);
  char text[8];
  EXPECT(hear("going", text, sizeof text), "child %d does not go on", child);
}

static void spoil(void) { *word_of(7) ^= 1; }

// Writes every `ms`; on SIGUSR1 it stands still until the next one.
static _Noreturn void write_from_outside(long ms) {
  char note[64];
  snprintf(note, sizeof note, "verdict.%d", getpid());
  tell(note, "ready");
  for (;;) {
    int request = wait_request(ms);
    if (request == FINISH) _exit(0);
    if (request == TIMED_OUT) tick_from_outside();
    else {
      tell(note, failure_taken ? failure_text : "ok");
      if (wait_request(-1) == FINISH) _exit(0);
      // Before that another signal of the same kind would be the same one.
      tell("going", "on");
    }
  }
}

// Executes us anew: memory that is shared since a fork would be another subject.
static void start_writer(char **argv, const char *ms, int model) {
  char note[64], text[512], heap_at[32], chunk_count[32], fd[16], parent_pid[16];
  snprintf(heap_at, sizeof heap_at, "%p", (void *)heap);
  snprintf(chunk_count, sizeof chunk_count, "%zu", chunks);
  snprintf(fd, sizeof fd, "%d", model);
  snprintf(parent_pid, sizeof parent_pid, "%d", parent);
  child = (pid_t)MUST(fork());
  if (child == 0) {
    MUST(fcntl(model, F_SETFD, 0));
    MUST(execl("/proc/self/exe", argv[0], "writer", ms, heap_at, chunk_count, fd, parent_pid, (char *)NULL));
  }
  kept_children[kept_count].serves = true;
  keep_child(child);
  snprintf(note, sizeof note, "verdict.%d", child);
  MUST(hear(note, text, sizeof text) ? 0 : -1);
}

static void map_model(int fd) {
  wanted = (void *)MUST(mmap(NULL, chunks * CHUNK_PAGES * sizeof *wanted + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  rounds = wanted + chunks * CHUNK_PAGES;
}

int main(int argc, char **argv) {
  if (argc > 2 && strcmp(argv[1], "writer") == 0) {
    heap = (char *)strtoul(argv[3], NULL, 0);
    chunks = strtoul(argv[4], NULL, 10);
    map_model(atoi(argv[5]));
    parent = atoi(argv[6]);
    begin();
    write_from_outside(atol(argv[2]));
  }
  begin();
  tamper = spoil;
  chunks = (argc > 1 ? strtoul(argv[1], NULL, 10) : 96) * MIB / CHUNK;
  long ms = argc > 2 ? atol(argv[2]) : 5;
  parent = getpid();
  MUST(pipe(ends));
  int model = (int)MUST(memfd_create("model", MFD_CLOEXEC));
  MUST(ftruncate(model, chunks * CHUNK_PAGES * sizeof *wanted + PAGE));
  map_model(model);
  char *room = map_anon((chunks + 1) * CHUNK, PROT_NONE);
  MUST(munmap(room, (chunks + 1) * CHUNK));
  heap = (char *)(((uintptr_t)room + 2 * MIB - 1) & -(2 * MIB));
  for (size_t i = 0; i < chunks; i++) map_at(heap + i * CHUNK, CHUNK);
  for (size_t page = 0; page < chunks * CHUNK_PAGES; page++) put(page, page + 1);
  if (argc > 3) {
    start_writer(argv, argv[2], model);
    serve(check);
  }
  close(model);
  serve_ticking(check, ms, tick);
}
