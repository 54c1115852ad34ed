// Where the kernel looks for the command line and the environment, the auxiliary vector, and which
// file the program is. The arguments are moved to a map of our own (PR_SET_MM, where permitted) and
// overwritten, as programs do that show their state in ps.
#include "test.h"
#include <sys/auxv.h>

static const char *const files[] = {"cmdline", "environ", "auxv"};
static char first[COUNT(files)][16 * 1024], executable[4096];
static ssize_t lengths[COUNT(files)];
static unsigned long bounds[4]; // arg_start arg_end env_start env_end
static unsigned long page_size, entry, random_bytes;

static void read_bounds(unsigned long to[4]) {
  char text[2048];
  read_text("/proc/self/stat", text, sizeof text);
  char *field = strrchr(text, ')') + 1; // field 3 comes next; 48 to 51 are wanted
  for (int i = 3; field != NULL && i < 48; i++) field = strchr(field + 1, ' ');
  for (int i = 0; i < 4; i++) to[i] = strtoul(field, &field, 10);
}

static void check(void) {
  static char now[16 * 1024];
  char path[64], target[4096] = "";
  unsigned long bounds_now[4];
  for (size_t i = 0; i < COUNT(files); i++) {
    snprintf(path, sizeof path, "/proc/self/%s", files[i]);
    ssize_t length = read_text(path, now, sizeof now);
    EXPECT(length == lengths[i] && memcmp(now, first[i], length) == 0, "%s changed: %s", files[i], now);
  }
  EXPECT(strncmp(first[0], "rewritten", 9) == 0, "the command line is %s", first[0]);
  EXPECT(readlink("/proc/self/exe", target, sizeof target - 1) > 0, "no /proc/self/exe: %m");
  EXPECT(strcmp(target, executable) == 0, "the program is %s", target);
  read_bounds(bounds_now);
  for (int i = 0; i < 4; i++) EXPECT(bounds_now[i] == bounds[i], "bound %d is %lx", i, bounds_now[i]);
  EXPECT_EQ(getauxval(AT_PAGESZ), page_size);
  EXPECT_EQ(getauxval(AT_ENTRY), entry);
  EXPECT_EQ(*(unsigned long *)getauxval(AT_RANDOM), random_bytes);
  EXPECT(getenv("PROGRAM_TEST") != NULL && strcmp(getenv("PROGRAM_TEST"), "set late") == 0, "getenv");
  EXPECT(getauxval(AT_SYSINFO_EHDR) != 0 && memcmp((void *)getauxval(AT_SYSINFO_EHDR), "\177ELF", 4) == 0,
         "the vdso is not where the auxiliary vector says");
}

static char *arguments;
static void spoil(void) { arguments[0] ^= 1; }

int main(int argc, char **argv) {
  begin();
  (void)argc;
  tamper = spoil;
  arguments = map_anon(PAGE, PROT_READ | PROT_WRITE);
  strcpy(arguments, "rewritten arguments");
  unsigned long start = (unsigned long)arguments, end = start + strlen(arguments) + 1;
  // The end first: the kernel wants start <= end at each step, and the map lies above or below.
  if (prctl(PR_SET_MM, PR_SET_MM_ARG_END, end, 0, 0) == 0) {
    MUST(prctl(PR_SET_MM, PR_SET_MM_ARG_START, start, 0, 0));
  } else if (prctl(PR_SET_MM, PR_SET_MM_ARG_START, start, 0, 0) == 0) {
    MUST(prctl(PR_SET_MM, PR_SET_MM_ARG_END, end, 0, 0));
  } else {
    // Not permitted: overwritten in place, as far as there is room.
    arguments = argv[0];
    size_t room = strlen(arguments);
    memset(arguments, 0, room);
    memcpy(arguments, "rewritten arguments", room < 19 ? room : 19);
  }
  setenv("PROGRAM_TEST", "set late", 1);
  for (size_t i = 0; i < COUNT(files); i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/%s", files[i]);
    lengths[i] = MUST(read_text(path, first[i], sizeof first[i]));
  }
  MUST(readlink("/proc/self/exe", executable, sizeof executable - 1));
  read_bounds(bounds);
  page_size = getauxval(AT_PAGESZ);
  entry = getauxval(AT_ENTRY);
  random_bytes = *(unsigned long *)getauxval(AT_RANDOM);
  serve(check);
}
