// Namespaces of tasks that do not share the root task's: made by the root of the user namespace that is to own them, and kept open in the
// root task until the tasks that live in them have entered (setns(2)).

import { openSync } from "node:fs";
import { AT_FDCWD, O_CLOEXEC, O_RDONLY } from "../../sys/abi/fcntl.ts";
import { Program, type Ref } from "../../tracee/program.ts";
import { kindOfNamespace, type NamespaceKind } from "./kinds.ts";
import type { PlannedNamespace } from "./plan.ts";
import type { NamespacesRestore } from "./room.ts";

/** A namespace of the tree that is there now. */
export interface MadeNamespace {
  readonly namespace: PlannedNamespace;
  /** Its descriptor in the root task; undefined for the one that the root task is in. */
  readonly place: number | undefined;
}

/** Kinds that a task makes for itself by unshare(2). */
type NestedKind = Extract<NamespaceKind, "uts" | "ipc" | "cgroup" | "net">;

/** Makes the nested ones among the namespaces of a kind, and tells where they are. */
export function makeNested(
  kind: NestedKind,
  namespaces: readonly PlannedNamespace[],
  restore: NamespacesRestore,
): MadeNamespace[] {
  const nested = namespaces.filter(({ role }) => role === "nested");
  const places = new Map<PlannedNamespace, number>();
  for (const owner of new Set(nested.map((namespace) => namespace.owner))) {
    const mine = nested.filter((namespace) => namespace.owner === owner);
    const program = new Program();
    // Who is root of another user namespace could not go back, and has no need to.
    const own = owner === undefined ? openOwn(program, kind) : undefined;
    const kept = mine.map((namespace) => {
      addUnshare(program, namespace);
      const label = `keep ${kind} namespace ${namespace.id}`;
      return { namespace, ref: restore.keep(program, openOwn(program, kind), label) };
    });
    if (own !== undefined) goBack(program, kind, own);
    const result = restore.runFor(mine[0] as PlannedNamespace, program);
    for (const { namespace, ref } of kept) {
      places.set(namespace, result.value(ref));
      restore.setDescriptor(namespace, result.value(ref));
    }
  }
  return namespaces.map((namespace) => ({ namespace, place: places.get(namespace) }));
}

function addUnshare(program: Program, { kind, id }: PlannedNamespace): void {
  program.call("unshare", [kindOfNamespace(kind).flag], {
    label: `make ${kind} namespace ${id}`,
    hint: "The limit on namespaces (/proc/sys/user) may be reached.",
  });
}

/** Adds the call that opens the namespace of a kind that the task is in. */
export function openOwn(program: Program, kind: NamespaceKind): Ref {
  const path = program.string(`/proc/thread-self/ns/${kind}`);
  return program.call("openat", [AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0], {
    label: `open the ${kind} namespace`,
  });
}

/** Adds the calls that enter a namespace that was left before. */
export function goBack(program: Program, kind: NamespaceKind, own: Ref): void {
  program.call("setns", [own, kindOfNamespace(kind).flag], {
    label: `go back to the root's ${kind} namespace`,
  });
  program.call("close", [own]);
}

/** Opens a namespace that is there in the engine, which closes it. */
export function openMade({ namespace: { kind }, place }: MadeNamespace, rootPid: number): number {
  const name = place === undefined ? `ns/${kind}` : `fd/${place}`;
  return openSync(`/proc/${rootPid}/${name}`, "r");
}
