// /proc/PID/ns/*: the namespaces of a task; each link's text is `kind:[inode]`, and two tasks are in one
// namespace when the inodes are equal. See namespaces(7). A zombie keeps only some, a kernel may lack some,
// and reading needs ptrace access: such entries are undefined.
import { readProcLink } from "./procfs.ts";
import { RepriseError } from "../errors.ts";

/** The entries of the ns directory. */
const NAMESPACE_LINKS = [
  "cgroup",
  "ipc",
  "mnt",
  "net",
  "pid",
  "pid_for_children",
  "time",
  "time_for_children",
  "user",
  "uts",
] as const;

export type NamespaceLink = (typeof NAMESPACE_LINKS)[number];

/** Inode of each namespace; undefined where it cannot be read. Inodes of namespaces have 32 bits. */
export type NamespaceInodes = { readonly [name in NamespaceLink]: number | undefined };

/** Namespaces of a process (of its leader). Throws NO_SUCH_PROCESS. */
export function readNamespaces(pid: number): NamespaceInodes {
  return namespacesIn(pid, "ns");
}

/** One namespace of a process (of its leader). Throws NO_SUCH_PROCESS. */
export function readNamespace(pid: number, name: NamespaceLink): number | undefined {
  return inodeOf(pid, `ns/${name}`);
}

/** Namespaces of one thread. Throws NO_SUCH_PROCESS. */
export function readThreadNamespaces(pid: number, tid: number): NamespaceInodes {
  return namespacesIn(pid, `task/${tid}/ns`);
}

/** Inode out of a link's text such as `net:[4026531833]`; undefined when it has another form. */
export function parseNamespaceLink(target: string): number | undefined {
  const match = /^\w+:\[(\d+)\]$/.exec(target);
  return match === null ? undefined : Number(match[1]);
}

function namespacesIn(pid: number, dir: string): NamespaceInodes {
  const entries = NAMESPACE_LINKS.map((name) => [name, inodeOf(pid, `${dir}/${name}`)] as const);
  return Object.fromEntries(entries) as NamespaceInodes;
}

function inodeOf(pid: number, name: string): number | undefined {
  try {
    return parseNamespaceLink(readProcLink(pid, name));
  } catch (error) {
    if (error instanceof RepriseError && error.code !== "NO_SUCH_PROCESS") return undefined;
    throw error;
  }
}
