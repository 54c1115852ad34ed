// CRIU's options about namespaces, read into the engine's: --join-ns, --empty-ns, --inherit-fd, --external, --root.

import { writeSync } from "node:fs";
import type {
  JoinedNamespace,
  NamespacesDumpOptions,
  NamespacesRestoreOptions,
} from "../objects/namespaces/room.ts";
import type { NamespaceKind } from "../objects/namespaces/kinds.ts";
import { RepriseError } from "../errors.ts";
import { mountOptions } from "./mounts.ts";
import { externalResources, type CriuOptions } from "./options.ts";

/** What a dump is told about namespaces. */
export function namespaceDumpOptions(options: CriuOptions): NamespacesDumpOptions {
  return {
    external: externalResources(options),
    emptyNet: options.values["empty-ns"] === "net",
    mounts: mountOptions(options),
  };
}

/** What a restore is told about namespaces. @throws RepriseError BAD_ARGUMENT */
export function namespaceRestoreOptions(options: CriuOptions): NamespacesRestoreOptions {
  const { lists, values } = options;
  const join = (lists["join-ns"] ?? []).map(readJoin);
  const emptyNet = values["empty-ns"] === "net";
  if (emptyNet && join.some(({ kind }) => kind === "net"))
    throw bad("join-ns", "net", "a network namespace can be joined or empty, not both");
  return {
    weakSysctls: options.flags.has("weak-sysctls"),
    external: externalResources(options),
    emptyNet,
    join,
    mounts: mountOptions(options),
    // Of two with one key, the first counts.
    inheritFds: new Map((lists["inherit-fd"] ?? []).flatMap(readInherited).toReversed()),
    ...(values.root === undefined ? {} : { root: values.root }),
  };
}

const JOINABLE: readonly NamespaceKind[] = ["net", "uts", "time", "ipc", "user", "mnt"];

/** `NS:PID` or `NS:FILE`, and for a user namespace `,UID,GID`. */
function readJoin(text: string): JoinedNamespace {
  const [, name = "", file = "", more] = /^([^:]*):([^,]*)(?:,(.*))?$/.exec(text) ?? [];
  const kind = JOINABLE.find((one) => one === name);
  if (kind === undefined || file === "")
    throw bad("join-ns", text, `it must be NS:PID or NS:FILE, NS one of ${JOINABLE.join(", ")}`);
  const path = /^\d+$/.test(file) ? `/proc/${file}/ns/${kind}` : file;
  if (more === undefined) return { kind, path };
  const ids = /^(\d+),(\d+)$/.exec(more);
  if (kind !== "user" || ids === null)
    throw bad("join-ns", text, "only a user namespace has further options, UID,GID");
  return { kind, path, uid: Number(ids[1]), gid: Number(ids[2]) };
}

/** `fd[N]:KEY`; and `debug[N]:TEXT` writes the text to descriptor N, to mark the restore there. */
function readInherited(text: string): [string, number][] {
  const [, kind, fd = "", rest = ""] = /^(fd|debug)\[(\d+)\]:(.+)$/.exec(text) ?? [];
  if (kind === undefined) throw bad("inherit-fd", text, "it must be fd[N]:KEY");
  if (kind === "fd") return [[rest, Number(fd)]];
  try {
    writeSync(Number(fd), rest);
  } catch (error) {
    throw bad("inherit-fd", text, `nothing can be written to it (${String(error)})`);
  }
  return [];
}

function bad(name: string, text: string, hint: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `invalid argument for --${name}: ${text}`, { hint });
}
