// Credentials: real, effective, saved and file-system ids, groups, capability sets, securebits,
// keep-capabilities, no_new_privs, dumpable; of the main thread and of a thread with other capabilities.
#include "test.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

static const char *const fields[] = {"Uid",    "Gid",    "Groups", "CapInh",     "CapPrm",
                                     "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"};
struct credentials {
  char values[COUNT(fields)][128];
  int securebits, keep, dumpable;
};
static struct credentials first_main, first_thread;
static pid_t thread_id;
static atomic_int thread_ready, thread_keep;

static void look(pid_t tid, struct credentials *credentials) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  for (size_t i = 0; i < COUNT(fields); i++)
    field_of(path, fields[i], credentials->values[i], sizeof credentials->values[i]);
  credentials->securebits = prctl(PR_GET_SECUREBITS);
  credentials->keep = prctl(PR_GET_KEEPCAPS);
  credentials->dumpable = prctl(PR_GET_DUMPABLE);
}

static void set_capabilities(uint64_t permitted, uint64_t effective, uint64_t inheritable) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  for (int i = 0; i < 2; i++)
    data[i] = (struct __user_cap_data_struct){.effective = (uint32_t)(effective >> (32 * i)),
                                              .permitted = (uint32_t)(permitted >> (32 * i)),
                                              .inheritable = (uint32_t)(inheritable >> (32 * i))};
  MUST(syscall(SYS_capset, &header, data));
}

static void *run_thread(void *unused) {
  thread_id = gettid();
  set_capabilities(1ULL << CAP_KILL | 1ULL << CAP_CHOWN, 1ULL << CAP_CHOWN, 0);
  thread_ready = 1;
  for (;; sleep_ms(1)) thread_keep = prctl(PR_GET_KEEPCAPS);
  return unused;
}

static void compare(const char *whose, const struct credentials *now,
                    const struct credentials *first) {
  for (size_t i = 0; i < COUNT(fields); i++)
    EXPECT(strcmp(now->values[i], first->values[i]) == 0, "%s: %s is %s, wanted %s", whose,
           fields[i], now->values[i], first->values[i]);
  EXPECT_EQ(now->securebits, first->securebits);
  EXPECT_EQ(now->keep, first->keep);
  EXPECT_EQ(now->dumpable, first->dumpable);
}

static void check(void) {
  struct credentials now;
  look(gettid(), &now);
  compare("main thread", &now, &first_main);
  look(thread_id, &now);
  compare("other thread", &now, &first_thread);
  EXPECT_EQ(thread_keep, first_main.keep);
  EXPECT(setuid(0) == -1, "the process can be root again");
  EXPECT(access("/root/.", W_OK) == -1, "the process may write in /root");
}

static void drop_one(void) { set_capabilities(1ULL << CAP_KILL, 0, 0); }

int main(void) {
  begin();
  tamper = drop_one;
  gid_t groups[] = {7, 70, 700, 70000};
  MUST(setgroups(COUNT(groups), groups));
  MUST(setresgid(11, 12, 13));
  setfsgid(14);
  MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0));
  MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
  MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS));
  MUST(setresuid(21, 22, 23));
  setfsuid(24);
  uint64_t some = 1ULL << CAP_KILL | 1ULL << CAP_CHOWN | 1ULL << CAP_SYS_NICE;
  set_capabilities(some, 1ULL << CAP_KILL, 1ULL << CAP_CHOWN);
  MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  MUST(prctl(PR_SET_DUMPABLE, 1)); // the change of ids had taken it away, and with it much of /proc
  pthread_t thread;
  pthread_create(&thread, NULL, run_thread, NULL);
  MUST(WITHIN(5000, thread_ready) ? 0 : -1);
  look(gettid(), &first_main);
  look(thread_id, &first_thread);
  serve(check);
}
