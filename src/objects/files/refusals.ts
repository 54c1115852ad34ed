// Files that no room takes: what they are, why they cannot be saved, and what to do about it. Most are anonymous inodes, whose name in
// /proc/PID/fd tells the kind ("anon_inode:[io_uring]"; anon_inode_getfd and its relatives all over the kernel).

import { statfsSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { readFds } from "../../proc/fd.ts";
import { S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK } from "../../sys/abi/fcntl.ts";
import type { OpenFile } from "./file-kind.ts";

/** What a file is, and what to do about it. */
interface Reason {
  readonly what: string;
  readonly hint: string;
}

/** The error for a file that is of no kind that can be saved. */
export function unsupported(file: OpenFile): RepriseError {
  const { task, fd, target } = file;
  const { what, hint } = reasonOf(file);
  const where = fd < 0 ? `a file of pid ${task.pid}` : `fd ${fd} of pid ${task.pid}`;
  return new RepriseError("UNSUPPORTED", `cannot dump ${where} (${target}): ${what}`, {
    pid: task.pid,
    ...(fd < 0 ? {} : { fd }),
    hint,
  });
}

/** The error for a file of a kind that can be saved, as a rule. */
export function refused(file: OpenFile, why: string, hint?: string): RepriseError {
  const where = file.fd < 0 ? file.target : `fd ${file.fd} (${file.target})`;
  return new RepriseError("UNSUPPORTED", `cannot dump ${where} of pid ${file.task.pid}: ${why}`, {
    pid: file.task.pid,
    ...(file.fd < 0 ? {} : { fd: file.fd }),
    hint: hint ?? "Let the process close the file before the dump.",
  });
}

/** The error for memory of an anonymous inode, which says through what it is reached where that is still open. */
export function unsupportedMemory(
  pid: number,
  area: { readonly start: number; readonly end: number; readonly path: string },
): RepriseError {
  const { what, hint } = anonymousReason(kindOfAnonymous(area.path) ?? area.path);
  const range = `${area.start.toString(16)}-${area.end.toString(16)}`;
  const [fd] = descriptorsOf(pid, area.path);
  const through = fd === undefined ? "closed" : `fd ${fd}`;
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump memory ${range} of pid ${pid}: it belongs to ${what} (${area.path}, ${through})`,
    { pid, ...(fd === undefined ? {} : { fd }), hint },
  );
}

const CLOSE_IT = "Let the process close it before the dump.";

function descriptorsOf(pid: number, target: string): number[] {
  return readFds(pid)
    .filter((link) => link.target === target)
    .map(({ fd }) => fd);
}

/** Kinds of anonymous inodes about which there is more to say. */
const ANONYMOUS: Readonly<Record<string, Reason>> = {
  io_uring: {
    what: "an io_uring ring, which can be looked into only while the process has it open",
    hint: "Let the process unmap it, too, before the dump.",
  },
  userfaultfd: {
    what: "a userfaultfd, whose ranges and waiting faults the kernel does not tell",
    hint: `${CLOSE_IT} A restore with --lazy-pages ends when the daemon has filled all memory.`,
  },
  perf_event: {
    what: "a perf event, whose settings the kernel does not tell",
    hint: "End the profiler (perf), or switch profiling off in the process, before the dump.",
  },
  "bpf-prog": {
    what: "a bpf program, which was verified and translated when it was loaded",
    hint: `${CLOSE_IT} Programs that are attached or pinned stay loaded without it.`,
  },
  bpf_link: { what: "the attachment of a bpf program", hint: CLOSE_IT },
  btf: { what: "a bpf description of types (BTF)", hint: CLOSE_IT },
  "bpf-map": {
    what: "a bpf map",
    hint: "Maps can be saved, but not their memory (BPF_F_MMAPABLE): let the process unmap it before the dump.",
  },
  "landlock-ruleset": {
    what: "a Landlock ruleset, whose rules the kernel does not tell",
    hint: `${CLOSE_IT} It is only needed until the process restricts itself.`,
  },
  "seccomp notify": {
    what: "a seccomp listener: it can be had only while its filter is installed",
    hint: `${CLOSE_IT} The supervisor of a container belongs outside of the tree.`,
  },
  fscontext: { what: "a file system that is being set up (fsopen)", hint: CLOSE_IT },
  "kvm-vm": { what: "a virtual machine of KVM", hint: "Use what the hypervisor has itself." },
};

function kindOfAnonymous(target: string): string | undefined {
  return /^anon_inode:\[?([^\]]+)\]?$/.exec(target)?.[1];
}

function anonymousReason(kind: string): Reason {
  return (
    ANONYMOUS[kind] ?? { what: `a file of kind ${kind}, which cannot be saved`, hint: CLOSE_IT }
  );
}

const SECRET_TARGET = "/secretmem (deleted)";
const SECRETMEM_MAGIC = 0x5345434d;

/** memfd_secret(2): nobody but the process can read it, not even the kernel for another. */
export function isSecretMemory({ target, procPath }: OpenFile): boolean {
  return target === SECRET_TARGET && statfsSync(procPath).type === SECRETMEM_MAGIC;
}

function reasonOf(file: OpenFile): Reason {
  const { stat, target } = file;
  const device = `${stat.rdevMajor}:${stat.rdevMinor}`;
  const anonymous = kindOfAnonymous(target);
  if (anonymous !== undefined) return anonymousReason(anonymous);
  if (isSecretMemory(file)) {
    return {
      what: "secret memory (memfd_secret), which only the process itself can read",
      hint: "Let the process unmap and close it before the dump.",
    };
  }
  const pseudo = /^(\w+):\[\d+\]$/.exec(target)?.[1];
  switch (stat.mode & S_IFMT) {
    case S_IFSOCK:
      return { what: "a socket of a kind that cannot be saved yet", hint: CLOSE_IT };
    case S_IFCHR:
      return {
        what: `character device ${device}, whose state the kernel does not tell`,
        hint: `${CLOSE_IT} Graphics, audio, virtual machines and other hardware cannot be checkpointed.`,
      };
    case S_IFBLK:
      return { what: `block device ${device}`, hint: CLOSE_IT };
    case S_IFIFO:
      return { what: "a pipe of a kind that cannot be saved yet", hint: CLOSE_IT };
    case S_IFREG:
      if (pseudo !== undefined) {
        return { what: `an open namespace or pseudo file (${pseudo})`, hint: CLOSE_IT };
      }
  }
  return { what: "a kind of file that cannot be saved yet", hint: CLOSE_IT };
}
