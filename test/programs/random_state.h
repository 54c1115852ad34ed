// What all parts of random_state.c share: the page, its actors, and the choice of descriptors.
#pragma once
#include "test.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <termios.h>

typedef void operation(unsigned a, unsigned b, unsigned c, unsigned d);

enum { ALIVE = 1, WAITING, DEAD };
enum { POKE_SIGNAL = 62, ACTORS = 24, DIGEST = 24576, NOTES = 131072 };

struct actor {
  _Atomic int state;
  _Atomic pid_t pid;
  pid_t tid;
  _Atomic int told;       // generation of the digest
  _Atomic int idle;       // waits for the page itself
  int born;               // in this step,
  _Atomic int died;       // and gone since that one; 0 while it lives
  uint64_t rseq;          // the kernel writes there
  uint64_t scratch;       // and below this, what is left of a wait
  int length;
  char digest[DIGEST];
};

struct page {
  _Atomic int step, arrived;
  _Atomic int count, generation;
  struct actor actors[ACTORS];
  _Atomic int noted;
  char notes[NOTES];
};

static struct page *page;
static _Thread_local int me;
static _Thread_local int now_step;
static void (*life)(void);

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...) {
  struct actor *actor = &page->actors[me];
  va_list list;
  va_start(list, format);
  int room = DIGEST - actor->length;
  int length = vsnprintf(actor->digest + actor->length, (size_t)room, format, list);
  va_end(list);
  actor->length += length < room ? length : room - 1;
}

// What an operation came to, for who reads the page; it is no part of any comparison.
static void __attribute__((format(printf, 1, 2))) note(const char *format, ...) {
  char text[300];
  int saved = errno;
  int length = snprintf(text, sizeof text, "%d actor %d: ", now_step, me);
  va_list list;
  va_start(list, format);
  length += vsnprintf(text + length, sizeof text - (size_t)length - 40, format, list);
  va_end(list);
  if (length > (int)sizeof text - 40) length = sizeof text - 40;
  if (saved != 0) length += snprintf(text + length, 40, " (%s)", strerrorname_np(saved));
  text[length++] = '\n';
  int at = atomic_fetch_add(&page->noted, length);
  if (at + length < NOTES) memcpy(page->notes + at, text, (size_t)length);
}

// The descriptor that stands at a place among those that are of some kind (a mask of 1 << (S_IFMT >> 12)); -1 without one.
// Descriptors of the kernel's own kinds (eventfd and so on) have no type.
enum {
  OTHERS = 1 << 0, PIPES = 1 << 1, DEVICES = 1 << 2, DIRECTORIES = 1 << 4, REGULAR = 1 << 8, SOCKETS = 1 << 12, ALL = 0xffff
};

static int pick(unsigned kinds, unsigned place) {
  int found[256], count = 0;
  for (int fd = 3; fd < 256; fd++) {
    struct stat stat;
    if (fstat(fd, &stat) == 0 && (kinds >> (stat.st_mode >> 12) & 1)) found[count++] = fd;
  }
  return count == 0 ? -1 : found[place % (unsigned)count];
}
