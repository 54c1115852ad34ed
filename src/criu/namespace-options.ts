// CRIU's options about namespaces, read into the engine's: --join-ns, --empty-ns, --inherit-fd, --external, --root.

import type {
  JoinedNamespace,
  NamespacesDumpOptions,
  NamespacesRestoreOptions,
} from "../objects/namespaces/room.ts";
import type { NamespaceKind } from "../objects/namespaces/kinds.ts";
import { RepriseError } from "../errors.ts";
import { externalResources, type CriuOptions } from "./options.ts";

/** What a dump is told about namespaces. */
export function namespaceDumpOptions(options: CriuOptions): NamespacesDumpOptions {
  return {
    external: externalResources(options),
    emptyNet: options.values["empty-ns"] === "net",
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
    external: externalResources(options),
    emptyNet,
    join,
    inheritFds: new Map((lists["inherit-fd"] ?? []).map(readInherited)),
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

/** `fd[N]:KEY`. */
function readInherited(text: string): [string, number] {
  const match = /^fd\[(\d+)\]:(.+)$/.exec(text);
  if (match === null) throw bad("inherit-fd", text, "it must be fd[N]:KEY");
  return [match[2] as string, Number(match[1])];
}

function bad(name: string, text: string, hint: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `invalid argument for --${name}: ${text}`, { hint });
}
