// State that nobody thought of: runs a script of random operations in a tree of tasks and threads, and then waits. See
// test/live/random-state.ts, which makes the scripts and compares what there is before and after a restore.
//
//   random_state SCRIPT        builds; SCRIPT has a line for each operation: ACTOR NAME A B C D
//   random_state look PID...   tells what can be seen of these tasks from outside, changing nothing
//   random_state drain PID...  takes what is queued in their descriptors, and sends something through each
//   random_state poke TID...   lets the waiting actors tell what only they can see (into the page), and wait again
//
// All take part in one walk over the script: a step is done by the actor (thread) that its line names, while the others wait.
// The page is a shared file, so that outside can read it and no descriptor is needed for it.
#include "random_state.h"
#include "random_files.h"
#include "random_sockets.h"
#include "random_memory.h"
#include "random_tasks.h"
#include "random_waits.h"
#include "random_look.h"
#include "random_drain.h"

static const struct {
  const char *name;
  operation *run;
} operations[] = {FILE_OPERATIONS, SOCKET_OPERATIONS, MEMORY_OPERATIONS, TASK_OPERATIONS, WAIT_OPERATIONS};

static struct {
  unsigned actor, kind, a, b, c, d;
} steps[1000];
static int step_count;

static void read_script(const char *path) {
  FILE *script = fopen(path, "re");
  char name[32];
  if (script == NULL) MUST(-1);
  while (step_count < (int)COUNT(steps)) {
    unsigned actor, a, b, c, d;
    if (fscanf(script, "%u %31s %u %u %u %u", &actor, name, &a, &b, &c, &d) != 6) break;
    unsigned kind = 0;
    while (kind < COUNT(operations) && strcmp(operations[kind].name, name) != 0) kind++;
    if (kind == COUNT(operations)) {
      dprintf(1, "fail: no operation %s\n", name);
      _exit(2);
    }
    steps[step_count].actor = actor;
    steps[step_count].kind = kind;
    steps[step_count].a = a;
    steps[step_count].b = b;
    steps[step_count].c = c;
    steps[step_count++].d = d;
  }
  fclose(script);
}

// While a step is done, actors come and go.
static bool is_there(struct actor *actor, int step) {
  return actor->born < step && (actor->died == 0 || actor->died >= step);
}

static int actor_of(int step) {
  int alive = 0;
  for (int i = 0; i < page->count; i++) alive += is_there(&page->actors[i], step);
  if (alive == 0) return -1;
  int wanted = (int)(steps[step].actor % (unsigned)alive);
  for (int i = 0; i < page->count; i++)
    if (is_there(&page->actors[i], step) && wanted-- == 0) return i;
  return -1;
}

static void walk(void) {
  for (int step; (step = atomic_load(&page->step)) < step_count;) {
    if (actor_of(step) != me) {
      usleep(50);
      continue;
    }
    int self = me;
    now_step = step;
    for (int i = 0; i < page->count; i++)
      if (page->actors[i].died == step - 1) usleep(3000); // its descriptors are closed by then
    errno = 0;
    operations[steps[step].kind].run(steps[step].a, steps[step].b, steps[step].c, steps[step].d);
    if (me != self) continue; // a child, whose parent goes on with the walk
    atomic_store(&page->step, step + 1);
  }
}

static void live(void) {
  walk();
  atomic_fetch_add(&page->arrived, 1);
  settle();
}

int main(int count, char **args) {
  if (count > 2 && strcmp(args[1], "look") == 0) return look(count - 2, args + 2);
  if (count > 2 && strcmp(args[1], "drain") == 0) return drain(count - 2, args + 2);
  if (count > 2 && strcmp(args[1], "poke") == 0) return poke(count - 2, args + 2);
  close_range(3, ~0U, 0);
  if (count != 2) return 2;
  read_script(args[1]);
  prepare();
  life = live;
  now_step = -1;
  add_actor(getpid(), gettid());
  live();
}
