// Operations on memory.
#pragma once
#include "random_files.h"
#include <sys/uio.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static struct {
  char *start;
  size_t size;
} areas[64];
static unsigned area_count;

static void keep_area(void *start, size_t size) {
  if (start == MAP_FAILED || area_count == COUNT(areas)) return;
  areas[area_count].start = start;
  areas[area_count++].size = size;
}

// A range of pages in one of the areas.
static char *range(unsigned a, unsigned b, size_t *size) {
  if (area_count == 0) return NULL;
  unsigned which = a % area_count;
  size_t pages = areas[which].size / PAGE, first = b % pages;
  *size = (1 + b / 7 % (pages - first)) * PAGE;
  return areas[which].start + first * PAGE;
}

// What writes: no fault for who may not.
static bool poke_memory(char *at, size_t size, unsigned value) {
  char bytes[200];
  memset(bytes, (int)value, sizeof bytes);
  struct iovec from = {bytes, size < sizeof bytes ? size : sizeof bytes}, to = {at, from.iov_len};
  return process_vm_writev(getpid(), &from, 1, &to, 1, 0) > 0;
}

static int protection(unsigned which) {
  static const int all[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC,
                            PROT_READ | PROT_WRITE | PROT_EXEC, PROT_WRITE};
  return all[which % COUNT(all)];
}

static void do_map(unsigned a, unsigned b, unsigned c, unsigned d) {
  static const int flags[] = {0, 0, MAP_NORESERVE, MAP_GROWSDOWN, MAP_LOCKED, MAP_POPULATE, MAP_STACK};
  size_t size = (1 + a % 40) * PAGE;
  int more = flags[b % COUNT(flags)];
  bool shared = more != MAP_GROWSDOWN && b / 7 % 3 == 0;
  char *start = mmap(NULL, size, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | more, -1, 0);
  if (start != MAP_FAILED)
    for (unsigned i = 0; i < c % 6; i++) start[(d >> i) % (size / PAGE) * PAGE + i] = (char)(i + c);
  if (start != MAP_FAILED && c % 5 == 4) mprotect(start, size, protection(d));
  keep_area(start, size);
  note("map %zu pages, flags 0x%x%s -> %p", size / PAGE, more, shared ? " shared" : "", start);
}

static void do_map_file(unsigned a, unsigned b, unsigned c, unsigned d) {
  int fd = PICKED(REGULAR | DEVICES, a);
  size_t size = (1 + b % 6) * PAGE;
  bool shared = c & 1;
  char *start = mmap(NULL, size, protection(d), shared ? MAP_SHARED : MAP_PRIVATE, fd, (off_t)(c / 2 % 3 * PAGE));
  struct stat stat;
  fstat(fd, &stat);
  // What is written behind the end of a file is nobody's (mmap(2)).
  bool inside = (off_t)(c / 2 % 3 * PAGE + d % PAGE / 2 + 100) <= stat.st_size;
  if (start != MAP_FAILED && d % 3 == 0 && inside) poke_memory(start + d % PAGE / 2, 100, d);
  if (d % 4 == 1) close(fd);
  keep_area(start, size);
  note("map fd %d%s -> %p", fd, shared ? " shared" : "", start);
}

static void do_touch(unsigned a, unsigned b, unsigned c, unsigned d) {
  size_t size;
  char *start = range(a, b, &size);
  if (start == NULL) return;
  int pages = 0;
  for (size_t at = 0; at < size; at += PAGE * (1 + d % 3)) pages += poke_memory(start + at + c % 2000, 200, c);
  note("touch %p: %d pages", start, pages);
}

static void do_protect(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  size_t size;
  char *start = range(a, b, &size);
  if (start != NULL) note("protect %p %zu %d -> %d", start, size / PAGE, protection(c), mprotect(start, size, protection(c)));
}

static void do_unmap(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  size_t size;
  char *start = range(a, b, &size);
  if (start != NULL) note("unmap %p %zu -> %d", start, size / PAGE, munmap(start, size));
}

static void do_remap(unsigned a, unsigned b, unsigned c, unsigned d) {
  size_t size;
  char *start = range(a, b, &size);
  if (start == NULL) return;
  size_t wanted = (1 + c % 20) * PAGE;
  bool keep = d % 4 == 0 && wanted == size;
  char *made = mremap(start, size, keep ? size : wanted, MREMAP_MAYMOVE | (keep ? MREMAP_DONTUNMAP : 0));
  keep_area(made, wanted);
  note("remap %p %zu -> %p %zu", start, size / PAGE, made, wanted / PAGE);
}

static void do_advise(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  static const int advices[] = {MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK,
                                MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTNEED, MADV_FREE,
                                MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_WRITE, MADV_SEQUENTIAL, MADV_RANDOM, MADV_NORMAL,
                                MADV_REMOVE, 102 /* MADV_GUARD_INSTALL */, 103 /* MADV_GUARD_REMOVE */};
  size_t size;
  char *start = range(a, b, &size);
  int advice = advices[c % COUNT(advices)];
  if (start != NULL) note("advise %p %zu %d -> %d", start, size / PAGE, advice, madvise(start, size, advice));
}

static void do_mlock(unsigned a, unsigned b, unsigned c, unsigned d) {
  size_t size;
  char *start = range(a, b, &size);
  int result;
  if (d % 8 == 0) result = mlockall(c & 1 ? MCL_CURRENT : c & 2 ? MCL_FUTURE : MCL_FUTURE | MCL_ONFAULT);
  else if (d % 8 == 1) result = munlockall();
  else if (start == NULL) return;
  else result = c % 3 == 0 ? mlock(start, size) : c % 3 == 1 ? mlock2(start, size, MLOCK_ONFAULT) : munlock(start, size);
  note("mlock %p %zu -> %d", start, size / PAGE, result);
}

static void do_name_area(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)d;
  size_t size;
  char name[32], *start = range(a, b, &size);
  snprintf(name, sizeof name, "an area %u", c % 3);
  if (start != NULL) note("name %p -> %d", start, prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, size, c % 5 ? name : NULL));
}

static void do_seal(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  size_t size;
  char *start = range(a, b, &size);
  if (start != NULL) note("seal %p -> %ld", start, syscall(462 /* mseal */, start, size, 0));
}

static void do_break(unsigned a, unsigned b, unsigned c, unsigned d) {
  (void)c, (void)d;
  char *start = sbrk((intptr_t)(1 + a % 30) * 1000);
  if (start != (void *)-1) memset(start, (int)b, 1000);
  note("break -> %p", start);
}

static void do_shm(unsigned a, unsigned b, unsigned c, unsigned d) {
  int id = shmget(IPC_PRIVATE, (1 + a % 5) * PAGE, IPC_CREAT | 0600);
  char *start = shmat(id, NULL, b % 3 == 0 ? SHM_RDONLY : 0);
  if (b % 3 != 0 && start != (void *)-1) memset(start, (int)c, 100);
  if (d & 1) keep_area(shmat(id, NULL, 0), PAGE);
  shmctl(id, IPC_RMID, NULL);
  note("shm %d -> %p", id, start);
}

static void do_overlay_map(unsigned a, unsigned b, unsigned c, unsigned d) {
  size_t size;
  char *start = range(a, b, &size);
  if (start == NULL) return;
  int fd = c % 3 == 0 ? pick(REGULAR, d) : -1;
  void *made = mmap(start, size, PROT_READ | PROT_WRITE,
                    MAP_FIXED | (c & 1 ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
  if (made != MAP_FAILED) poke_memory(made, 100, d);
  note("map over %p %zu, fd %d -> %p", start, size / PAGE, fd, made);
}

#define MEMORY_OPERATIONS                                                                                           \
  {"map", do_map}, {"map_file", do_map_file}, {"touch", do_touch}, {"protect", do_protect}, {"unmap", do_unmap},    \
    {"remap", do_remap}, {"advise", do_advise}, {"mlock", do_mlock}, {"name_area", do_name_area}, {"seal", do_seal}, \
    {"break", do_break}, {"shm", do_shm}, {"overlay_map", do_overlay_map}
