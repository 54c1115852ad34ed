// The smallest scripts of what was lost once, by what it was.

export const SCRIPTS: Readonly<Record<string, readonly string[]>> = {
  "that a connection was reset": [
    "412 socketpair 5616 4399 6750 2392",
    "330 close 5899 9128 4255 3666",
  ],
  "that the peer of a datagram socket was closed": ["571 socketpair 2761 8407 52 1303"],
  "that a FIFO has had no writer yet": ["350 fifo 9037 3144 7014 1302"],
  "what a closed terminal printed, and that it was closed": ["625 pty 4427 5790 5854 6787"],
  "a watch for nothing": ["675 inotify 181 4747 2705 3205"],
  "that a child of a real-time task has no timer slack": [
    "824 schedule 2477 6445 6885 9710",
    "571 fork 4261 9637 6274 4423",
  ],
  "an area that reaches beyond its segment": [
    "591 shm 6253 4246 7076 6253",
    "781 remap 5990 7082 9264 4352",
    "771 protect 249 3041 4841 9209",
  ],
  "that a datagram socket without a port is shut down": [
    "906 inet_bind 7266 7770 1205 4216",
    "189 shutdown 1379 1460 715 3739",
  ],
  "that tasks have a file of /proc in common": [
    "658 directory 6520 7609 3501 2348",
    "460 special 2797 6547 9307 6297",
    "746 fork 9878 3006 5305 5228",
  ],
  "a file of /proc in another root directory": ["0 special 9 0 0 0", "0 place 3 0 0 0"],
  "a file of /proc of a thread": [
    "0 thread 4 3335 9202 1296",
    "1 special 9 1 1 0",
    "0 fork 1 1 1 1",
    "0 dup 0 1 1 0",
  ],
  "a file of /proc of a thread that has ended": [
    "0 thread 4 3335 9202 1296",
    "1 special 9 1 1 0",
    "1 exit_thread 0 0 0 0",
  ],
  "that a thread gets the signals of a file": [
    "400 thread 4 3335 9202 1296",
    "79 memfd 5443 9489 9466 3861",
    "839 flags 3709 6878 7005 6250",
  ],
  "the size of the segments of a TCP connection": [
    "793 inet_bind 4713 4192 7844 7039",
    "871 inet_connect 7466 976 2587 3883",
  ],
  "that the one shot of an epoll was fired": [
    "0 epoll 0 0 0 0",
    "0 socketpair 0 2 5 3",
    "0 watch 0 1 3 1",
  ],
  "how far a message queue was read": [
    "683 mqueue 8117 4086 4169 4443",
    "954 seek 4197 5633 1323 4706",
  ],
  "the signal of a packet socket": ["0 raw 1 2 0 0", "0 flags 0 3 5 0"],
  "the signal of a netlink socket": ["0 netlink 0 0 0 0", "0 flags 0 3 5 0"],
  "that a thread gets the signals of a FIFO": [
    "981 thread 6300 3683 4871 4325",
    "948 fifo 446 1149 4098 3779",
    "331 thread 7171 9161 1902 7773",
    "808 flags 4702 644 3780 3678",
  ],
  "the signal of a pidfd": [
    "905 pidfd 9756 9503 6729 2374",
    "739 dup 6728 8945 3125 5598",
    "176 flags 1288 969 4911 3588",
  ],
  "that a namespace is open as a path": ["865 special 491 330 4177 6472"],
};
