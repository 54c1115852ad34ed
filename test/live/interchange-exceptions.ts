// What CRIU 4.2 cannot save or give back, so that a program that looks for it fails where CRIU was one of the two engines.
// Nearly all were seen with CRIU on both sides, too. The same table for people: docs/interchange.md.

export type Direction = "restored by CRIU" | "dumped by CRIU";

export interface InterchangeException {
  readonly why: string;
  /** What the program says then. */
  readonly says: RegExp;
}

type Exceptions = Readonly<
  Record<string, Partial<Readonly<Record<Direction, InterchangeException>>>>
>;

/** Exceptions by program and direction. */
export const interchangeExceptions: Exceptions = {
  bpf_maps: {
    "restored by CRIU": {
      why: "CRIU knows bpf maps only when it was built with libbpf",
      says: /"pass"|Unknown file type 19/,
    },
    "dumped by CRIU": {
      why: "CRIU knows bpf maps only when it was built with libbpf",
      says: /"pass"|Can't dump file \d+ .*bpf-map/,
    },
  },
  creds: {
    "dumped by CRIU": {
      why: "CRIU needs CAP_SYS_RESOURCE to read the limits of another user's process; Reprise lets the process tell them",
      says: /"pass"|Can't get rlimit/,
    },
  },
  deleted_attributes: {
    "restored by CRIU": {
      why: "CRIU's format has no extended attributes of files",
      says: /security\.capability of fd/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save extended attributes of files",
      says: /security\.capability of fd/,
    },
  },
  directories: {
    "restored by CRIU": {
      why: "CRIU drops O_DIRECTORY from an O_PATH descriptor",
      says: /the flags of the directory are 10000000/,
    },
  },
  dispatched: {
    "restored by CRIU": {
      why: "CRIU's format has no Syscall User Dispatch",
      says: /side \d: the call gives/,
    },
    "dumped by CRIU": {
      why: "calls of CRIU's parasite are sent to the program",
      says: /compel_syscall|task interruption|infect/,
    },
  },
  ended_leaders: {
    "restored by CRIU": {
      why: "CRIU cannot make a process whose main thread has ended: the images have a state for it that CRIU does not know",
      says: /Unknown task state 30000/,
    },
    "dumped by CRIU": {
      why: "CRIU stops at a process whose main thread has ended",
      says: /Unable to detach|Dumping FAILED/,
    },
  },
  epolls_elsewhere: {
    "restored by CRIU": {
      why: "CRIU's format has a number in the process for what an epoll watches, and these have none",
      says: /told is 12, wanted 15/,
    },
    "dumped by CRIU": {
      why: "CRIU refuses an epoll that watches what its process has closed",
      says: /Dump eventpoll .* failed/,
    },
  },
  eventfds: {
    "restored by CRIU": {
      why: "CRIU makes an eventfd with a counter of 32 bits",
      says: /take\(plain\) is/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save EFD_SEMAPHORE",
      says: /take\(semaphore\) is 3, wanted 1/,
    },
  },
  file_locks: {
    "restored by CRIU": {
      why: "CRIU starts the breaking of a lease anew, and its signal is sent again",
      says: /a signal for the broken lease came again/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save a lock that a child holds on a file that it inherited",
      says: /from_outside\(at_90\) is 0/,
    },
  },
  future_locks: {
    "restored by CRIU": {
      why: "CRIU's format has no MCL_FUTURE",
      says: /a new map has/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save MCL_FUTURE",
      says: /a new map has/,
    },
  },
  inet_options: {
    "restored by CRIU": {
      why: "CRIU sets IP_FREEBIND when the address is bound already, and has no place for the other options",
      says: /Can't bind inet socket/,
    },
    "dumped by CRIU": {
      why: "CRIU refuses Multipath TCP and corked UDP sockets",
      says: /Unsupported proto 262|corked dgram|recv failed/,
    },
  },
  io_uring_owners: {
    "restored by CRIU": {
      why: "CRIU has no io_uring: a ring is a file of kind EXT, and its memory is mapped from that",
      says: /No entry for reg-file-ID/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save io_uring",
      says: /io_uring/,
    },
  },
  io_uring_waits: {
    "restored by CRIU": {
      why: "CRIU has no io_uring: a ring is a file of kind EXT, and its memory is mapped from that",
      says: /No entry for reg-file-ID/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save io_uring",
      says: /io_uring/,
    },
  },
  io_urings: {
    "restored by CRIU": {
      why: "CRIU has no io_uring: a ring is a file of kind EXT, and its memory is mapped from that",
      says: /No entry for reg-file-ID/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save io_uring",
      says: /io_uring/,
    },
  },
  many_rooms: {
    "restored by CRIU": {
      why: "CRIU has no io_uring, and no maps of bpf(2) in this build",
      says: /Unknown file type|No entry for reg-file-ID/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save io_uring",
      says: /io_uring/,
    },
  },
  mlock_flags: {
    "restored by CRIU": { why: "CRIU's format has no MLOCK_ONFAULT", says: /on-fault map/ },
    "dumped by CRIU": { why: "CRIU's format has no MLOCK_ONFAULT", says: /on-fault map/ },
  },
  mqueues: {
    "restored by CRIU": {
      why: "CRIU has no POSIX message queues: it opens them in /dev/mqueue, if that is there",
      says: /dev\/mqueue/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save POSIX message queues",
      says: /Can't lookup mount/,
    },
  },
  names: {
    "restored by CRIU": {
      why: "the format's field for a name holds text; names that are not UTF-8 are in a field of ours",
      says: /the name of thread 1/,
    },
    "dumped by CRIU": {
      why: "CRIU writes names that are not UTF-8 into a field for text, which is read as text",
      says: /the name of thread 1/,
    },
  },
  next_pids: {
    "restored by CRIU": {
      why: "CRIU does not know of a pid namespace that is to have its first process",
      says: /children have another namespace already/,
    },
    "dumped by CRIU": {
      why: "CRIU does not know of a pid namespace that is to have its first process",
      says: /children have another namespace already/,
    },
  },
  no_exec_gain: {
    "restored by CRIU": { why: "CRIU's format has no PR_SET_MDWE", says: /PR_GET_MDWE/ },
    "dumped by CRIU": { why: "CRIU does not save PR_SET_MDWE", says: /PR_GET_MDWE/ },
  },
  notify_marks: {
    "restored by CRIU": {
      why: "CRIU has no fanotify marks on whole file systems",
      says: /Bad fsnotify mark type 0x3/,
    },
    "dumped by CRIU": {
      why: "CRIU saves neither fanotify marks on whole file systems nor what leads to a watched symbolic link",
      says: /marks are , were fanotify sdev|names its file only by a handle/,
    },
  },
  overlays: {
    "dumped by CRIU": {
      why: "CRIU does not know the mounts of a program that was started in another mount namespace",
      says: /Can't lookup mount/,
    },
  },
  nested_namespaces: {
    "restored by CRIU": {
      why: "CRIU makes further mount and network namespaces only",
      says: /Can't restore sub-task in NS/,
    },
    "dumped by CRIU": {
      why: "CRIU saves further mount and network namespaces only",
      says: /Can't dump nested ipc namespace/,
    },
  },
  nested_pids: {
    "restored by CRIU": {
      why: "CRIU makes further mount and network namespaces only",
      says: /Can't restore sub-task in NS/,
    },
    "dumped by CRIU": {
      why: "CRIU saves further mount and network namespaces only",
      says: /Can't dump nested pid namespace/,
    },
  },
  nested_times: {
    "restored by CRIU": {
      why: "CRIU makes further mount and network namespaces only",
      says: /Can't restore sub-task in NS/,
    },
    "dumped by CRIU": {
      why: "CRIU saves further mount and network namespaces only",
      says: /Can't dump nested time namespace/,
    },
  },
  net_namespaces: {
    "dumped by CRIU": {
      why: "CRIU saves the routes of the main table alone",
      says: /and before '10.79.0.0\/16 via 10.78.0.2 dev a0 table 77/,
    },
  },
  shared_parts: {
    "restored by CRIU": {
      why: "CRIU cannot share memory or directories between processes: it looks for a file 0 that is not there",
      says: /No entry for reg-file-ID 0/,
    },
    "dumped by CRIU": {
      why: "CRIU refuses processes that share memory or directories",
      says: /Can't make VM id/,
    },
  },
  numa_policies: {
    "restored by CRIU": {
      why: "CRIU knows no NUMA policies",
      says: /policy_at\(NULL, &nodes\) is 0/,
    },
    "dumped by CRIU": {
      why: "CRIU knows no NUMA policies",
      says: /policy_at\(NULL, &nodes\) is 0/,
    },
  },
  thread_places: {
    "restored by CRIU": {
      why: "CRIU gives all threads the directories of the first one",
      says: /the first thread has our directory/,
    },
    "dumped by CRIU": {
      why: "CRIU does not look at the directories of threads",
      says: /the first thread has our directory/,
    },
  },
  task_settings: {
    "restored by CRIU": {
      why: "CRIU's format has no core dump filter and no autogroup",
      says: /the core dump filter/,
    },
    "dumped by CRIU": {
      why: "CRIU saves neither the core dump filter nor the autogroup",
      says: /the core dump filter/,
    },
  },
  tcp_signed: {
    "restored by CRIU": {
      why: "CRIU's format has no keys that sign segments (TCP_MD5SIG)",
      says: /no connection to 0 with the key/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save keys that sign segments (TCP_MD5SIG)",
      says: /no connection to 0 with the key/,
    },
  },
  terminals: {
    "dumped by CRIU": {
      why: "CRIU does not save a line of a terminal that is not finished",
      says: /read 6: ished/,
    },
  },
  thread_pidfds: {
    "restored by CRIU": {
      why: "CRIU opens pidfds before there are threads",
      says: /Could not open pidfd/,
    },
    "dumped by CRIU": {
      why: "CRIU refuses pidfds of threads",
      says: /PIDFD_THREAD flag is currently not supported/,
    },
  },
  odd_children: {
    "restored by CRIU": {
      why: "CRIU makes an orphan a child of pid 1, and every child send SIGCHLD",
      says: /stat_field\((orphan, 4|teller, 38)\)/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save which signal a child sends at its end",
      says: /stat_field\(teller, 38\)/,
    },
  },
  personality_oom: {
    "restored by CRIU": { why: "CRIU does not restore the personality", says: /personality is 0/ },
    "dumped by CRIU": { why: "CRIU does not save the personality", says: /personality is 0/ },
  },
  posix_timers: {
    "restored by CRIU": {
      why: "CRIU does not restore the overrun count of a timer",
      says: /it overran 0 times only/,
    },
  },
  prctls: {
    "restored by CRIU": { why: "CRIU does not restore the timer slack", says: /TIMERSLACK/ },
    "dumped by CRIU": { why: "CRIU does not save the timer slack", says: /TIMERSLACK/ },
  },
  sched: {
    "restored by CRIU": {
      why: "CRIU restores neither the slice of time nor the I/O priority",
      says: /slice_of|I\/O priority 0/,
    },
    "dumped by CRIU": {
      why: "CRIU saves neither the slice of time nor the I/O priority, and refuses deadlines",
      says: /slice_of|I\/O priority 0|criu dump/,
    },
  },
  sealed_maps: {
    "restored by CRIU": { why: "CRIU's format has no seals of memory", says: /can be unmapped/ },
    "dumped by CRIU": {
      why: "CRIU cannot dump a sealed map without access, and saves no seal",
      says: /can be unmapped|unprotect vmas/,
    },
  },
  segments: {
    "restored by CRIU": {
      why: "CRIU's format has no local descriptor table",
      says: /SYS_modify_ldt/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save the local descriptor table",
      says: /SYS_modify_ldt/,
    },
  },
  sessions: {
    "restored by CRIU": {
      why: "CRIU makes an orphan a child of pid 1, not of the subreaper",
      says: /the orphan of a session has the parent 1/,
    },
  },
  socket_options: {
    "restored by CRIU": {
      why: "CRIU's format has no fields for these options",
      says: /option 1:\d+ of kind \d+ is/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save these options, and refuses a queue whose owner wants to be told of times and pidfds",
      says: /option 1:\d+ of kind \d+ is|Control messages in queue/,
    },
  },
  sysv_ipc: {
    "restored by CRIU": {
      why: "CRIU does not restore the size of a message queue",
      says: /msg_qbytes is 16384, wanted 5000/,
    },
  },
  sysv_shm: {
    "restored by CRIU": {
      why: "CRIU knows shared memory segments only in an IPC namespace of the tree's own",
      says: /Can't find sysv shmem/,
    },
    "dumped by CRIU": {
      why: "CRIU knows shared memory segments only in an IPC namespace of the tree's own",
      says: /doesn't live in IPC ns/,
    },
  },
  timerfds: {
    "dumped by CRIU": {
      why: "CRIU saves a timer that went off and was not read as disarmed",
      says: /timer 0: (0 ms are left|interval 0)/,
    },
  },
  tun_files: {
    "restored by CRIU": {
      why: "CRIU sets the send buffer of a tun device before its files are attached, each of which has its own",
      says: /send buffer of 2147483647/,
    },
  },
  unlike_threads: {
    "restored by CRIU": {
      why: "CRIU's format has no timer slack of threads",
      says: /thread \d+: word 0 is c350, wanted 11170/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save the timer slack of threads",
      says: /thread \d+: word 0 is c350, wanted 11170/,
    },
  },
  udp_queues: {
    "restored by CRIU": { why: "CRIU drops waiting datagrams", says: /received -1: , wanted one/ },
    "dumped by CRIU": { why: "CRIU drops waiting datagrams", says: /received -1: , wanted one/ },
  },
  unix_dgram: {
    "restored by CRIU": {
      why: "CRIU cannot connect to a datagram socket without a name that has let its peer go",
      says: /Can't connect|Peer \d+ unresolved/,
    },
    "dumped by CRIU": {
      why: "CRIU cannot save a socket whose peer has let it go and has no name",
      says: /with unreachable peer/,
    },
  },
  unix_listen: {
    "restored by CRIU": {
      why: "CRIU does not keep the order of connections that wait to be accepted",
      says: /wanted a/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save the order of connections that wait to be accepted",
      says: /wanted a/,
    },
  },
  unix_named: {
    "restored by CRIU": {
      why: "CRIU makes accepted connections without the name of their listener",
      says: /name of accepted socket 0 is/,
    },
  },
  unix_peers: {
    "restored by CRIU": {
      why: "CRIU makes all sockets as root",
      says: /peer\.uid is 0, wanted 1111/,
    },
    "dumped by CRIU": {
      why: "CRIU does not save the users of sockets",
      says: /peer\.uid is 0, wanted 1111/,
    },
  },
  unix_scm: {
    "restored by CRIU": {
      why: "CRIU ends with a bug when a socket in flight has files in flight and no task holds it",
      says: /Empty list on file desc/,
    },
    "dumped by CRIU": {
      why: "CRIU's look at a queue ends at an empty datagram",
      says: /received -1: , wanted/,
    },
  },
  zombies: {
    "restored by CRIU": {
      why: "CRIU keeps seven bits of a zombie's exit code",
      says: /si_status is 127, wanted 255/,
    },
  },
};
