// The kinds of image files of a set: file name, magic, message, payload. One line a kind; what CRIU
// 4.2 no longer writes but still reads stands at the end. CRIU's own table is criu/image-desc.c.
import type { MagicName } from "./magic.ts";
import type { MessageName } from "./codec.ts";

/** How the number in a file name is written: not at all, decimal, lower-case hexadecimal. */
export type NumberFormat = "none" | "decimal" | "hex";

/** What follows an entry in its file (image-file.ts reads each). */
export type PayloadRule =
  | "none"
  | "pipe"
  | "packet"
  | "tcp-queues"
  | "ghost"
  | "messages"
  | "semaphores"
  | "segment"
  | "map";

export interface KindSpec {
  readonly number: NumberFormat;
  /** Undefined: a raw image, without head and entries. */
  readonly magic?: MagicName;
  readonly message?: MessageName;
  /** Message of the first entry, when it is another one. */
  readonly head?: MessageName;
  readonly payload?: PayloadRule;
  /** `inventory` has no common head; `service` has its own and no `.img`. */
  readonly framing?: "inventory" | "service";
  /** After the number and before `.img`. */
  readonly suffix?: string;
  /** What it holds, for errors about a file that is not there. */
  readonly about: string;
}

// oxfmt-ignore
export const IMAGE_KINDS = {
  "inventory": { number: "none", magic: "INVENTORY", message: "inventory_entry", framing: "inventory", about: "the inventory, written last" },
  "pstree": { number: "none", magic: "PSTREE", message: "pstree_entry", about: "the process tree" },
  "files": { number: "none", magic: "FILES", message: "file_entry", about: "the open files" },
  "fdinfo": { number: "decimal", magic: "FDINFO", message: "fdinfo_entry", about: "a table of file descriptors" },
  "core": { number: "decimal", magic: "CORE", message: "core_entry", about: "registers and state of a task or thread" },
  "ids": { number: "decimal", magic: "IDS", message: "task_kobj_ids_entry", about: "the kernel object ids of a task" },
  "mm": { number: "decimal", magic: "MM", message: "mm_entry", about: "the memory mappings of a task" },
  "fs": { number: "decimal", magic: "FS", message: "fs_entry", about: "working and root directory of a task" },
  "pagemap": { number: "decimal", magic: "PAGEMAP", message: "pagemap_entry", head: "pagemap_head", about: "the list of saved pages of a task" },
  "pagemap-shmem": { number: "decimal", magic: "PAGEMAP", message: "pagemap_entry", head: "pagemap_head", about: "the list of saved pages of shared memory" },
  "pages": { number: "decimal", about: "the content of memory" },
  "pipes-data": { number: "none", magic: "PIPES_DATA", message: "pipe_data_entry", payload: "pipe", about: "the data in pipes" },
  "fifo-data": { number: "none", magic: "FIFO_DATA", message: "pipe_data_entry", payload: "pipe", about: "the data in FIFOs" },
  "sk-queues": { number: "none", magic: "SK_QUEUES", message: "sk_packet_entry", payload: "packet", about: "the data in unix sockets" },
  "tcp-stream": { number: "hex", magic: "TCP_STREAM", message: "tcp_stream_entry", payload: "tcp-queues", about: "the state of a TCP connection" },
  "remap-fpath": { number: "none", magic: "REMAP_FPATH", message: "remap_file_path_entry", about: "the list of deleted files" },
  "ghost-file": { number: "hex", magic: "GHOST_FILE", message: "ghost_file_entry", payload: "ghost", about: "the content of a deleted file" },
  "memfd": { number: "none", magic: "MEMFD_INODE", message: "memfd_inode_entry", about: "the memfds" },
  "tty-info": { number: "none", magic: "TTY_INFO", message: "tty_info_entry", about: "the terminals" },
  "tty-data": { number: "none", magic: "TTY_DATA", message: "tty_data_entry", about: "the data in terminals" },
  "filelocks": { number: "none", magic: "FILE_LOCKS", message: "file_lock_entry", about: "the file locks" },
  "seccomp": { number: "none", magic: "SECCOMP", message: "seccomp_entry", about: "the seccomp filters" },
  "apparmor": { number: "none", magic: "APPARMOR", message: "apparmor_entry", about: "the AppArmor policies" },
  "cgroup": { number: "none", magic: "CGROUP", message: "cgroup_entry", about: "the cgroups" },
  "cpuinfo": { number: "none", magic: "CPUINFO", message: "cpuinfo_entry", about: "the features of the CPU" },
  "bpfmap-data": { number: "none", magic: "BPFMAP_DATA", message: "bpfmap_data_entry", payload: "map", about: "the content of BPF maps" },
  "binfmt-misc": { number: "none", magic: "BINFMT_MISC", message: "binfmt_misc_entry", about: "the registered binary formats" },
  "autofs": { number: "decimal", magic: "AUTOFS", message: "autofs_entry", about: "an autofs mount" },
  "utsns": { number: "decimal", magic: "UTSNS", message: "utsns_entry", about: "a UTS namespace" },
  "timens": { number: "decimal", magic: "TIMENS", message: "timens_entry", about: "the clocks" },
  "userns": { number: "decimal", magic: "USERNS", message: "userns_entry", about: "a user namespace" },
  "pidns": { number: "decimal", magic: "PIDNS", message: "pidns_entry", about: "a pid namespace" },
  "ipcns-var": { number: "decimal", magic: "IPC_VAR", message: "ipc_var_entry", about: "the limits of an IPC namespace" },
  "ipcns-shm": { number: "decimal", magic: "IPCNS_SHM", message: "ipc_shm_entry", payload: "segment", about: "System V shared memory" },
  "ipcns-sem": { number: "decimal", magic: "IPCNS_SEM", message: "ipc_sem_entry", payload: "semaphores", about: "System V semaphores" },
  "ipcns-msg": { number: "decimal", magic: "IPCNS_MSG", message: "ipc_msg_entry", payload: "messages", about: "System V message queues" },
  "mountpoints": { number: "decimal", magic: "MNTS", message: "mnt_entry", about: "the mounts of a namespace" },
  "netns": { number: "decimal", magic: "NETNS", message: "netns_entry", about: "a network namespace" },
  "netdev": { number: "decimal", magic: "NETDEV", message: "net_device_entry", about: "the network devices" },
  "ifaddr": { number: "decimal", about: "the network addresses" },
  "route": { number: "decimal", about: "the IPv4 routes" },
  "route6": { number: "decimal", about: "the IPv6 routes" },
  "rule": { number: "decimal", about: "the routing rules" },
  "iptables": { number: "decimal", about: "the iptables rules" },
  "ip6tables": { number: "decimal", about: "the ip6tables rules" },
  "nftables": { number: "decimal", about: "the nftables rules" },
  "netns-ct": { number: "decimal", about: "the tracked connections" },
  "netns-exp": { number: "decimal", about: "the expected connections" },
  "tmpfs-dev": { number: "decimal", suffix: ".tar.gz", about: "the content of a tmpfs" },
  "tmpfs": { number: "decimal", suffix: ".tar.gz", about: "the content of a tmpfs" },
  "stats-dump": { number: "none", magic: "STATS", message: "stats_entry", framing: "service", about: "the statistics of the dump" },
  "stats-restore": { number: "none", magic: "STATS", message: "stats_entry", framing: "service", about: "the statistics of the restore" },
  "irmap-cache": { number: "none", magic: "IRMAP_CACHE", message: "irmap_cache_entry", framing: "service", about: "paths by inode" },
  "reg-files": { number: "none", magic: "REG_FILES", message: "reg_file_entry", about: "regular files (old)" },
  "ext-files": { number: "none", magic: "EXT_FILES", message: "ext_file_entry", about: "external files (old)" },
  "ns-files": { number: "none", magic: "NS_FILES", message: "ns_file_entry", about: "namespace files (old)" },
  "eventfd": { number: "none", magic: "EVENTFD_FILE", message: "eventfd_file_entry", about: "eventfds (old)" },
  "eventpoll": { number: "none", magic: "EVENTPOLL_FILE", message: "eventpoll_file_entry", about: "epoll files (old)" },
  "eventpoll-tfd": { number: "none", magic: "EVENTPOLL_TFD", message: "eventpoll_tfd_entry", about: "epoll targets (old)" },
  "signalfd": { number: "none", magic: "SIGNALFD", message: "signalfd_entry", about: "signalfds (old)" },
  "inotify": { number: "none", magic: "INOTIFY_FILE", message: "inotify_file_entry", about: "inotify files (old)" },
  "inotify-wd": { number: "none", magic: "INOTIFY_WD", message: "inotify_wd_entry", about: "inotify watches (old)" },
  "fanotify": { number: "none", magic: "FANOTIFY_FILE", message: "fanotify_file_entry", about: "fanotify files (old)" },
  "fanotify-mark": { number: "none", magic: "FANOTIFY_MARK", message: "fanotify_mark_entry", about: "fanotify marks (old)" },
  "unixsk": { number: "none", magic: "UNIXSK", message: "unix_sk_entry", about: "unix sockets (old)" },
  "inetsk": { number: "none", magic: "INETSK", message: "inet_sk_entry", about: "inet sockets (old)" },
  "packetsk": { number: "none", magic: "PACKETSK", message: "packet_sock_entry", about: "packet sockets (old)" },
  "netlinksk": { number: "none", magic: "NETLINK_SK", message: "netlink_sk_entry", about: "netlink sockets (old)" },
  "pipes": { number: "none", magic: "PIPES", message: "pipe_entry", about: "pipes (old)" },
  "fifo": { number: "none", magic: "FIFO", message: "fifo_entry", about: "FIFOs (old)" },
  "tty": { number: "none", magic: "TTY_FILES", message: "tty_file_entry", about: "terminal files (old)" },
  "tunfile": { number: "none", magic: "TUNFILE", message: "tunfile_entry", about: "tun files (old)" },
  "timerfd": { number: "none", magic: "TIMERFD", message: "timerfd_entry", about: "timerfds (old)" },
  "pidfd": { number: "none", magic: "PIDFD", message: "pidfd_entry", about: "pidfds (old)" },
  "bpfmap-file": { number: "none", magic: "BPFMAP_FILE", message: "bpfmap_file_entry", about: "BPF maps (old)" },
  "creds": { number: "decimal", magic: "CREDS", message: "creds_entry", about: "credentials (old)" },
  "vmas": { number: "decimal", magic: "VMAS", message: "vma_entry", about: "mappings (old)" },
  "itimers": { number: "decimal", magic: "ITIMERS", message: "itimer_entry", about: "interval timers (old)" },
  "posix-timers": { number: "decimal", magic: "POSIX_TIMERS", message: "posix_timer_entry", about: "POSIX timers (old)" },
  "sigacts": { number: "decimal", magic: "SIGACT", message: "sa_entry", about: "signal actions (old)" },
  "rlimit": { number: "decimal", magic: "RLIMIT", message: "rlimit_entry", about: "resource limits (old)" },
  "signal-s": { number: "decimal", magic: "SIGNAL", message: "siginfo_entry", about: "pending signals (old)" },
  "signal-p": { number: "decimal", magic: "PSIGNAL", message: "siginfo_entry", about: "pending signals of threads (old)" },
} as const satisfies Record<string, KindSpec>;

export type ImageKind = keyof typeof IMAGE_KINDS;

/** Kinds that consist of entries. */
export type EntryKind = {
  [K in ImageKind]: (typeof IMAGE_KINDS)[K] extends { readonly message: MessageName } ? K : never;
}[ImageKind];

/** Kinds without head and entries. */
export type RawKind = Exclude<ImageKind, EntryKind>;

/** Name of the message of a kind. */
export type MessageOf<K extends EntryKind> = (typeof IMAGE_KINDS)[K]["message"];

/** What is known of a kind, with every optional member visible. */
export function kindSpec(kind: ImageKind): KindSpec {
  return IMAGE_KINDS[kind];
}

/** File name of an image; `id` is the number of kinds that have one. */
export function imageName(kind: ImageKind, id?: number): string {
  const spec = kindSpec(kind);
  const number =
    spec.number === "none" ? "" : `-${(id ?? 0).toString(spec.number === "hex" ? 16 : 10)}`;
  return `${kind}${number}${spec.suffix ?? ""}${spec.framing === "service" ? "" : ".img"}`;
}

/** Kind and number of a file name, or undefined when it is not an image's. */
export function parseImageName(name: string): { kind: ImageKind; id: number } | undefined {
  const match = /^([a-z0-9-]+?)(?:-([0-9a-f]+))?(?:\.tar\.gz)?(?:\.img)?$/.exec(name);
  if (match === null) return undefined;
  const [, stem = "", digits] = match;
  for (const [kind, text] of [
    [stem, digits],
    [name.replace(/\.img$/, ""), undefined],
  ] as const) {
    if (!isImageKind(kind)) continue;
    const id = text === undefined ? 0 : parseInt(text, kindSpec(kind).number === "hex" ? 16 : 10);
    if (imageName(kind, id) === name) return { kind, id };
  }
  return undefined;
}

function isImageKind(name: string): name is ImageKind {
  return Object.hasOwn(IMAGE_KINDS, name);
}
