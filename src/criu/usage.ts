// The help texts.

import { FEATURE_NAMES } from "../kernel/features.ts";

export const USAGE = `Usage:
  criu dump|pre-dump -t PID [OPTIONS]
  criu restore [OPTIONS]
  criu check [--feature NAME | --extra | --experimental | --all]
  criu page-server|lazy-pages|service|dedup [OPTIONS]
  criu cpuinfo dump|check [OPTIONS]
  criu --version

Actions:
  dump           checkpoint a process tree
  pre-dump       save the memory of a tree that goes on, for a later dump
  restore        restore a process tree
  check          is the kernel good enough
  page-server    take the pages of a dump that runs elsewhere; with --lazy-pages give pages
  lazy-pages     fill the memory of a restore --lazy-pages
  service        answer RPC at a socket
  dedup          give back what older sets hold twice
  cpuinfo dump   write what the processor can to cpuinfo.img
  cpuinfo check  compare the processor with cpuinfo.img
`;

export const OPTIONS_HELP = `Options with a star may be taken back by --no-NAME.

Directories and output:
  -D, --images-dir DIR       images (default: .)
  -W, --work-dir DIR         logs, pidfile and statistics (default: the images directory)
  -o, --log-file FILE        log, in the work directory (default: standard error)
  -v, -vN, --verbosity[=N]   1 errors, 2 warnings (default), 3 information, 4 debugging
      --display-stats *      print statistics at the end
      --log-pid *            with -o, restore: also a log for every process, FILE.PID, of its calls
      --pidfile FILE         write the root task's pid; the file must not exist
      --action-script PATH   run at every step; may be given several times
      --config FILE          read options from this file instead of the default ones
      --no-default-config    read no configuration files

Dump:
  -t, --tree PID             root of the tree
  -R, --leave-running        let the tasks run on
  -s, --leave-stopped        leave the tasks stopped
      --timeout SECONDS      for stopping the tasks (default: 10)
      --ghost-limit SIZE     largest deleted file that is saved; K, M, G (default: 1M)
      --strict               refuse what no image can hold, instead of a warning (Reprise's own)
      --link-remap *         link deleted files back that have other names
      --freeze-cgroup DIR    cgroup that is frozen while its tasks are stopped
      --cgroup-props TEXT    settings of cgroups that are saved, in YAML; --cgroup-props-file FILE
      --cgroup-dump-controller NAME  save settings of this controller only; may be given several times

Restore:
  -d, --restore-detached *   leave as soon as the tasks run; a server goes to the background
  -S, --restore-sibling *    the root task becomes a child of who started criu; with -d
  -r, --root DIR             root of the tree's mount namespace
  -J, --join-ns NS:PID|FILE  existing namespace to restore into
      --inherit-fd fd[N]:KEY our descriptor N is what the tree had as KEY: pipe:[7], socket:[7],
                             tty[88:18], file[1f:7], a path, the key of an external namespace
  -s, --leave-stopped        leave the tasks stopped
      --exec-cmd -- COMMAND  become the command, as the root task's parent
      --file-validation HOW  filesize or buildid (default)
      --lsm-profile KIND:NAME  apparmor or selinux label for all tasks; none: leaves them the restorer's
      --lsm-mount-context TEXT  SELinux context for mounts that had one
      --skip-file-rwx-check * do not compare permissions of files

Both:
      --explain              print what would be saved or done, and do nothing (Reprise's own)
  -j, --shell-job *          the tree belongs to a session that is not part of it
      --external RESOURCE    what belongs to outside: mnt[..]:.., net[7]:KEY, pid[7]:KEY, tty[..],
                             file[..], unix[7], veth[..]:.., macvlan[..]:.., netdev[..]:..
      --tcp-established *    keep connections
      --tcp-close *          close connections
  -x, --ext-unix-sk[=INODES] unix sockets may be connected to ones outside
  -l, --file-locks *         keep file locks
      --manage-cgroups[=HOW] ignore, none, props, soft, full, strict
      --cgroup-root [C:]PATH cgroup that stands for the tree's own
      --cpu-cap[=LIST]       write and compare the processor: cpu, fpu, ins, all, none, ^NAME

Memory in chains, and over the network:
      --prev-images-dir DIR  the set before, relative to the images: its pages are not written again
      --track-mem *          this set may become the one before of another
      --auto-dedup *         give back pages of older sets, or pages that were restored
      --page-server *        send pages to --address and --port, or to the connection --ps-socket
      --address, --port      of a server
      --status-fd FD         a zero byte comes when a server can be connected to
      --lazy-pages           dump: leave pages in the tasks, and give them to lazy-pages;
                             restore: let lazy-pages fill memory when it is touched
      --stream *             dump, restore: to and from criu-image-streamer, which listens in the images directory
      --tls *                with --tls-cacert, --tls-cacrl, --tls-cert, --tls-key FILE, --tls-no-cn-verify

Not needed here, and taken without effect:
      --unprivileged *       a user with CAP_CHECKPOINT_RESTORE saves and restores processes of his own anyway,
                             as far as their objects need no more
      --allow-uprobes *      breakpoints of the kernel's probes are never part of the images
      --libdir DIR           there are no plugins: what CRIU has them for (GPUs) is refused
      --evasive-devices *, --force-irmap *, --irmap-scan-path, --mntns-compat-mode *, --ghost-fiemap *

The other options of CRIU 4.2 are understood as well.

Features for check:
${wrapped([...FEATURE_NAMES])}
`;

function wrapped(words: string[]): string {
  const lines: string[] = [""];
  for (const word of words) {
    const line = lines.at(-1) ?? "";
    if (line.length + word.length > 76) lines.push(`  ${word}`);
    else lines[lines.length - 1] = line === "" ? `  ${word}` : `${line}, ${word}`;
  }
  return lines.join("\n");
}
