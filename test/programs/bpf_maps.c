// Maps of bpf(2): type, sizes, name, flags and content of hashes and arrays, a frozen one, and one shared with a child. With "more" what
// CRIU cannot save: values per processor, LRU hashes, LPM tries, descriptions that may only read or write, two of one map.
#include "test.h"
#include <linux/bpf.h>

#define BIG_ENTRIES 3000

enum { PLAIN, FROZEN, EMPTY, BIG, PER_CPU, PER_CPU_HASH, LRU, TRIE, READ_ONLY, READ_MADE, WRITE_ONLY, SAME, MAPS };
static int maps[MAPS];
static struct bpf_map_info before[MAPS];
static bool more;
static int processors;
static pid_t child;

static long bpf(int command, union bpf_attr *attr) { return syscall(SYS_bpf, command, attr, sizeof *attr); }

static int create(int type, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags, const char *name) {
  union bpf_attr attr = {.map_type = (uint32_t)type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags};
  strcpy(attr.map_name, name);
  return (int)MUST(bpf(BPF_MAP_CREATE, &attr));
}

static long element(int command, int map, const void *key, const void *value, uint64_t flags) {
  union bpf_attr attr = {.map_fd = (uint32_t)map, .key = (uintptr_t)key, .value = (uintptr_t)value, .flags = flags};
  return bpf(command, &attr);
}

static struct bpf_map_info info_of(int map) {
  struct bpf_map_info info = {0};
  union bpf_attr attr = {.info = {.bpf_fd = (uint32_t)map, .info_len = sizeof info, .info = (uintptr_t)&info}};
  EXPECT(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) == 0, "no information: %m");
  return info;
}

static int again(int map, uint32_t flags) {
  union bpf_attr attr = {.map_id = info_of(map).id, .open_flags = flags};
  return (int)MUST(bpf(BPF_MAP_GET_FD_BY_ID, &attr));
}

static int count(int map) {
  char key[64], next[64];
  union bpf_attr attr = {.map_fd = (uint32_t)map, .next_key = (uintptr_t)next};
  int found = 0;
  while (bpf(BPF_MAP_GET_NEXT_KEY, &attr) == 0) {
    memcpy(key, next, sizeof key);
    attr.key = (uintptr_t)key;
    found++;
  }
  return found;
}

static void expect_word(int map, uint64_t key, uint64_t wanted) {
  uint64_t value = 0;
  EXPECT(element(BPF_MAP_LOOKUP_ELEM, map, &key, &value, 0) == 0, "key %lu is gone: %m", key);
  EXPECT_EQ(value, wanted);
}

static void same_look(int which) {
  struct bpf_map_info now = info_of(maps[which]), *old = &before[which];
  EXPECT(now.type == old->type && now.key_size == old->key_size && now.value_size == old->value_size &&
             now.max_entries == old->max_entries && now.map_flags == old->map_flags && strcmp(now.name, old->name) == 0,
         "map %d is another: type %u, name %s, flags %x", which, now.type, now.name, now.map_flags);
}

static void expect_frozen(int map, bool frozen) {
  char path[64], value[32];
  uint64_t key = 1;
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", map);
  field_of(path, "frozen", value, sizeof value);
  EXPECT_EQ(atoi(value), frozen);
  if (frozen)
    EXPECT(element(BPF_MAP_UPDATE_ELEM, map, &key, &key, 0) == -1 && errno == EPERM, "a frozen map was changed");
}

static void check_more(void) {
  static uint64_t values[1024];
  uint64_t key = 1, value = 0;
  struct { uint32_t length, address; } prefix = {32, htobe32(0x0a010203)};
  for (int which = PER_CPU; which <= PER_CPU_HASH; which++) {
    uint64_t wanted = which == PER_CPU ? 100 : 200;
    EXPECT(element(BPF_MAP_LOOKUP_ELEM, maps[which], &key, values, 0) == 0, "per processor: %m");
    for (int cpu = 0; cpu < processors; cpu++) EXPECT_EQ(values[cpu], wanted + (uint64_t)cpu);
  }
  for (uint64_t i = 0; i < 3; i++) expect_word(maps[LRU], i, 300 + i);
  EXPECT_EQ(count(maps[LRU]), 3);
  EXPECT(element(BPF_MAP_LOOKUP_ELEM, maps[TRIE], &prefix, &value, 0) == 0 && value == 16, "10.1.2.3 leads to %lu", value);
  EXPECT_EQ(count(maps[TRIE]), 2);
  expect_word(maps[READ_ONLY], 7, 77);
  EXPECT(element(BPF_MAP_UPDATE_ELEM, maps[READ_ONLY], &key, &key, 0) == -1 && errno == EPERM, "a read-only description writes");
  EXPECT_EQ(fcntl(maps[READ_ONLY], F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(fcntl(maps[READ_MADE], F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(count(maps[READ_MADE]), 4);
  EXPECT(element(BPF_MAP_LOOKUP_ELEM, maps[WRITE_ONLY], &key, &value, 0) == -1 && errno == EPERM, "a write-only description reads");
  // One map, whichever description is used.
  value = (uint64_t)now_ms(CLOCK_MONOTONIC);
  EXPECT(element(BPF_MAP_UPDATE_ELEM, maps[WRITE_ONLY], &key, &value, 0) == 0, "write: %m");
  expect_word(maps[SAME], 1, value);
  EXPECT_EQ(info_of(maps[SAME]).id, info_of(maps[WRITE_ONLY]).id);
  EXPECT_EQ(info_of(maps[READ_ONLY]).id, info_of(maps[PLAIN]).id);
}

static void child_check(void) { expect_word(maps[PLAIN], 1000, 4); }

static void check(void) {
  static char page[4096];
  for (int which = 0; which < (more ? MAPS : PER_CPU); which++) same_look(which);
  for (uint64_t i = 1; i < 10; i++) expect_word(maps[PLAIN], i, i * 11);
  EXPECT_EQ(count(maps[PLAIN]), 9);
  for (uint32_t i = 0; i < 5; i++) expect_word(maps[FROZEN], i, 50 + i);
  expect_frozen(maps[FROZEN], true);
  expect_frozen(maps[PLAIN], false);
  EXPECT_EQ(count(maps[EMPTY]), 0);
  for (uint32_t i = 0; i < BIG_ENTRIES; i += 7) {
    EXPECT(element(BPF_MAP_LOOKUP_ELEM, maps[BIG], &i, page, 0) == 0 && filled(page, sizeof page, i), "page %u is another", i);
  }
  if (more) check_more();
  // A child sees what is written now.
  uint64_t key = 1000, value = 4;
  EXPECT(element(BPF_MAP_UPDATE_ELEM, maps[PLAIN], &key, &value, BPF_NOEXIST) == 0, "write: %m");
  ask_child(child);
  EXPECT(element(BPF_MAP_DELETE_ELEM, maps[PLAIN], &key, NULL, 0) == 0, "delete: %m");
  EXPECT_EQ(fcntl(maps[PLAIN], F_GETFD), FD_CLOEXEC);
}

static void change_one(void) {
  uint64_t key = 3, value = 3;
  element(BPF_MAP_UPDATE_ELEM, maps[PLAIN], &key, &value, 0);
}

static void set_up_more(void) {
  static uint64_t values[1024];
  uint64_t one = 1;
  char text[64];
  read_text("/sys/devices/system/cpu/possible", text, sizeof text);
  processors = strchr(text, '-') == NULL ? 1 : atoi(strchr(text, '-') + 1) + 1;
  maps[PER_CPU] = create(BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 3, 0, "per_cpu");
  maps[PER_CPU_HASH] = create(BPF_MAP_TYPE_PERCPU_HASH, 8, 8, 30, 0, "per_cpu_hash");
  for (int which = PER_CPU; which <= PER_CPU_HASH; which++) {
    for (int cpu = 0; cpu < processors; cpu++) values[cpu] = (which == PER_CPU ? 100 : 200) + (uint64_t)cpu;
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[which], &one, values, 0));
  }
  maps[LRU] = create(BPF_MAP_TYPE_LRU_HASH, 8, 8, 1000, 0, "lru");
  for (uint64_t i = 0; i < 3; i++) {
    uint64_t value = 300 + i;
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[LRU], &i, &value, 0));
  }
  maps[TRIE] = create(BPF_MAP_TYPE_LPM_TRIE, 8, 8, 10, BPF_F_NO_PREALLOC, "trie");
  for (uint32_t length = 8; length <= 16; length += 8) {
    struct { uint32_t length, address; } key = {length, htobe32(length == 8 ? 0x0a000000 : 0x0a010000)};
    uint64_t value = length;
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[TRIE], &key, &value, 0));
  }
  maps[READ_ONLY] = again(maps[PLAIN], BPF_F_RDONLY);
  maps[READ_MADE] = create(BPF_MAP_TYPE_ARRAY, 4, 8, 4, BPF_F_RDONLY, "read_made");
  maps[WRITE_ONLY] = create(BPF_MAP_TYPE_HASH, 8, 8, 4, BPF_F_WRONLY, "write_only");
  maps[SAME] = again(maps[WRITE_ONLY], 0);
}

int main(int argc, char **argv) {
  static char page[4096];
  begin();
  more = argc > 1 && strcmp(argv[1], "more") == 0;
  maps[PLAIN] = create(BPF_MAP_TYPE_HASH, 8, 8, 100, BPF_F_NO_PREALLOC, "plain_hash");
  for (uint64_t i = 1; i < 10; i++) {
    uint64_t value = i * 11;
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[PLAIN], &i, &value, 0));
  }
  maps[FROZEN] = create(BPF_MAP_TYPE_ARRAY, 4, 8, 5, BPF_F_RDONLY_PROG, "frozen.array");
  for (uint32_t i = 0; i < 5; i++) {
    uint64_t value = 50 + i;
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[FROZEN], &i, &value, 0));
  }
  union bpf_attr freeze = {.map_fd = (uint32_t)maps[FROZEN]};
  MUST(bpf(BPF_MAP_FREEZE, &freeze));
  maps[EMPTY] = create(BPF_MAP_TYPE_HASH, 33, 5, 10, 0, "");
  maps[BIG] = create(BPF_MAP_TYPE_ARRAY, 4, sizeof page, BIG_ENTRIES, 0, "big");
  for (uint32_t i = 0; i < BIG_ENTRIES; i++) {
    fill(page, sizeof page, i);
    MUST(element(BPF_MAP_UPDATE_ELEM, maps[BIG], &i, page, 0));
  }
  if (more) set_up_more();
  for (int which = 0; which < (more ? MAPS : PER_CPU); which++) before[which] = info_of(maps[which]);
  child = start_child(NULL, child_check);
  tamper = change_one;
  serve(check);
}
