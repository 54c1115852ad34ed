// The test programs by the room of the engine that they are about, with what each needs to be saved. A test holds that
// every program of test/programs is in one room.

import type { CheckpointOptions } from "../../src/engine/checkpoint.ts";
import type { RestoreOptions } from "../../src/engine/restore.ts";

export interface Subject {
  readonly name: string;
  readonly args?: readonly string[];
  readonly checkpoint?: Partial<CheckpointOptions>;
  readonly restore?: Partial<RestoreOptions>;
  /** The program proper is the child of what is started, in a pid namespace of its own. */
  readonly inner?: boolean;
  /** Why a clone cannot run beside the first one: they would write into the same files. */
  readonly alone?: string;
}

/** Connections are saved only when asked for. */
const CONNECTED = {
  checkpoint: { tcp: { established: true } },
  restore: { tcp: { established: true } },
} as const;

export const ROOMS: Readonly<Record<string, readonly Subject[]>> = {
  memory: [
    { name: "aio_rings" },
    { name: "anon_memory" },
    { name: "big_heap" },
    { name: "heap_at_work" },
    { name: "heap_upheaval", args: ["16"] },
    { name: "heap_upheaval", args: ["16", "5", "writer"] },
    { name: "changing_pages" },
    { name: "cmdline_env_auxv" },
    { name: "cow_fork" },
    { name: "file_maps", alone: "a shared mapping of a file" },
    { name: "future_locks" },
    { name: "heap_brk" },
    { name: "huge_pages", alone: "huge pages are set aside for one" },
    { name: "madvise_flags" },
    { name: "memfd_maps" },
    { name: "mlock_flags" },
    { name: "numa_policies" },
    { name: "odd_maps", alone: "a shared mapping of a file" },
    { name: "personality_oom" },
    { name: "shared_memory" },
    { name: "stack_grows" },
    { name: "sysv_ipc" },
    { name: "sysv_ipc", args: ["used"] },
    { name: "sysv_shm", alone: "a segment that other programs can attach" },
    { name: "uprobes", alone: "its watcher" },
    { name: "uprobes", args: ["unused"], alone: "its watcher" },
    { name: "vdso_clock" },
  ],
  threads: [
    { name: "threads" },
    { name: "threads", args: ["40"] },
    { name: "thread_places" },
    { name: "names" },
    { name: "tls_tid" },
    { name: "regs" },
    { name: "sched" },
    { name: "segments" },
    { name: "selfcheck", alone: "its heartbeats are in a file" },
    { name: "counter", alone: "it counts the lines of its output" },
  ],
  signals: [
    { name: "sigactions" },
    { name: "sigaltstack" },
    { name: "sigpending" },
    { name: "signalfds" },
  ],
  timers: [
    { name: "itimers" },
    { name: "posix_timers" },
    { name: "timerfds" },
    { name: "timerfds", args: ["alarm"] },
  ],
  creds: [{ name: "creds" }, { name: "limits" }, { name: "prctls" }],
  tree: [
    { name: "many_tasks" },
    { name: "orphans" },
    { name: "sessions" },
    { name: "shared_fdtable" },
    { name: "shared_parts" },
    { name: "stopped_child" },
    { name: "vforks" },
    { name: "zombies" },
  ],
  files: [
    { name: "bpf_maps" },
    { name: "bpf_maps", args: ["more"] },
    { name: "cloexec" },
    { name: "dead_processes", alone: "a clone has another /proc" },
    { name: "deleted_attributes" },
    { name: "deleted_files" },
    { name: "devices" },
    { name: "directories" },
    { name: "epolls" },
    { name: "epolls", args: ["busy"] },
    { name: "epolls_elsewhere" },
    { name: "eventfds" },
    { name: "fifos", alone: "the data would be in the same FIFO twice" },
    {
      name: "hardlink_only",
      checkpoint: { linkRemap: true },
      restore: { removeLinks: true },
      alone: "it counts the names of a file, and the set keeps one for the next restore",
    },
    { name: "shared_offsets" },
    { name: "io_urings", alone: "both write to the same file" },
    { name: "io_uring_owners", alone: "both write to the same files" },
    { name: "many_fds" },
    { name: "many_kinds" },
    { name: "many_pairs" },
    { name: "mqueues", alone: "queues that both would use" },
    { name: "notify_marks", alone: "both write to the same file" },
    { name: "odd_names", alone: "its names" },
    { name: "pipes" },
    { name: "pipes", args: ["owned"] },
    { name: "regular_files", alone: "both append to the same files" },
    { name: "shared_pidfds" },
    { name: "shared_pidfds", args: ["others"] },
    { name: "thread_pidfds" },
    { name: "umask_cwd_root" },
    { name: "umask_cwd_root", args: ["chroot"] },
  ],
  unix: [
    { name: "unix_dgram", alone: "its abstract names" },
    { name: "unix_listen", alone: "its abstract names" },
    { name: "unix_named", alone: "its names" },
    { name: "unix_pairs" },
    { name: "unix_peers", alone: "its abstract names" },
    { name: "unix_scm", alone: "a file that the program writes anew" },
  ],
  network: [
    { name: "netlink_sockets", alone: "its port" },
    { name: "netlink_sockets", args: ["high"], alone: "its port" },
    { name: "packet_sockets", alone: "its fanout group" },
    { name: "tun_files" },
    { name: "net_namespaces" },
  ],
  namespaces: [
    { name: "namespaces" },
    { name: "namespaces", args: ["time"] },
    { name: "next_pids" },
    { name: "nested_namespaces" },
    { name: "nested_namespaces", args: ["own"] },
    { name: "nested_times" },
    { name: "nested_times", args: ["own"] },
    { name: "nested_times", args: ["user"] },
    { name: "nested_pids" },
    { name: "nested_pids", args: ["mnt", "uts", "ipc"] },
    { name: "nested_pids", args: ["user", "mnt", "uts", "ipc"] },
    { name: "nested_pids", args: ["user", "early", "mnt", "uts"] },
    { name: "namespaces", args: ["pid", "uts"], inner: true },
    { name: "namespaces", args: ["pid", "user", "uts", "ipc", "time"], inner: true },
  ],
  inet: [
    { name: "inet_options", ...CONNECTED, alone: "its ports" },
    { name: "socket_options", ...CONNECTED, alone: "its addresses" },
    { name: "tcp_closing", ...CONNECTED, alone: "its addresses" },
    { name: "tcp_echo", alone: "its port" },
    { name: "tcp_listen", alone: "its ports" },
    { name: "tcp_local", ...CONNECTED, alone: "its addresses" },
    { name: "tcp_many", ...CONNECTED, alone: "its addresses" },
    { name: "tcp_signed", ...CONNECTED, alone: "its addresses" },
    { name: "udp_queues", alone: "its ports" },
    { name: "udp_sockets", alone: "its ports" },
  ],
  mounts: [
    { name: "mount_namespaces", alone: "its notes to its child are in files" },
    { name: "overlays", alone: "both write to the same layers" },
    { name: "autofs" },
    { name: "autofs", args: ["untouched"] },
  ],
  locks: [
    { name: "file_locks", checkpoint: { fileLocks: true }, alone: "locks exclude each other" },
  ],
  seccomp: [{ name: "seccomps" }],
  restart: [
    { name: "endless_waits" },
    { name: "futex_restart" },
    { name: "nanosleep_restart" },
    { name: "poll_restart" },
    { name: "read_restart" },
    { name: "signalled_calls" },
    { name: "wait_restart" },
  ],
};
