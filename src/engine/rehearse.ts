// A dump is rehearsed on a process of our own before the tree is frozen: V8 loads and compiles a function when it is called first, and
// memory is got from the kernel when it is used first, which is half of the time that a small tree would stand still for. Nothing is
// kept of it.

import { RepriseError } from "../errors.ts";
import { log, quietly } from "../log.ts";
import type { MessageInput } from "../images/codec.ts";
import { ImageSetWriter } from "../images/image-set.ts";
import type { RepriseMachine } from "../images/schema/messages.generated.ts";
import { prepareWindows } from "../objects/memory/pages.ts";
import { AlikeWatch } from "../objects/task/alike.ts";
import { LandlockWatch } from "../objects/task/landlock.ts";
import { NetworkLock } from "../objects/network/lock.ts";
import { openNetNamespaces } from "../objects/network/net-namespaces.ts";
import { MFD_CLOEXEC } from "../sys/abi/mman.ts";
import { syscall } from "../sys/ffi.ts";
import { cure } from "../tracee/injection.ts";
import { isStandIn } from "../sys/front.ts";
import { RESTORE_OPTIONS } from "../tracee/seed.ts";
import { dummyPid, endDummy, startDummy } from "../tracee/dummy.ts";
import { collectTree } from "./collect.ts";
import { ComparedAhead } from "./compare-ahead.ts";
import { freezeTree } from "./freeze.ts";
import { ParentSet } from "./incremental.ts";
import { inventoryEntry } from "./inventory.ts";
import { lookInside } from "./look-inside.ts";
import { asRepriseError } from "./system-error.ts";
import { WrittenAhead } from "./write-ahead.ts";
import { writeTree } from "./write.ts";

const PATIENCE_MS = 1000;

/** To be called some milliseconds before `rehearse`, and `endDummy` when it comes to nothing. An engine that stands by has done it all. */
export function prepareRehearsal(): void {
  if (!isRehearsed && !isStandIn()) startDummy();
}

let isRehearsed = false;

/** Dumps the dummy, if there is one, into files that have no name, and ends it. A second time is not needed. */
export async function rehearse(machine: MessageInput<RepriseMachine>): Promise<void> {
  const pid = dummyPid();
  if (isRehearsed || pid === undefined) return;
  isRehearsed = true;
  prepareWindows();
  try {
    await quietly(() => dumpOnce(pid, machine));
  } catch (thrown) {
    // What hinders the dump will hinder it, too, and be told then.
    const error = asRepriseError(thrown, `rehearse with pid ${pid}`);
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`rehearsal: ${error.message}`);
  } finally {
    endDummy();
  }
}

async function dumpOnce(pid: number, machine: MessageInput<RepriseMachine>): Promise<void> {
  const images = ImageSetWriter.unnamed(() =>
    syscall("memfd_create", Buffer.from("reprise\0"), MFD_CLOEXEC),
  );
  try {
    const tree = freezeTree(pid, { timeoutMs: PATIENCE_MS });
    // Ours alone, it ends with us: else it would stay stopped for good when we are killed while it runs one of our programs.
    for (const { threads } of tree.tasks)
      for (const { stopped } of threads) stopped.tracee.setOptions(RESTORE_OPTIONS);
    const lock = NetworkLock.forDump(openNetNamespaces(tree.tasks, []));
    const collected = collectTree(tree, images, {
      shellJob: true,
      orphanPtsMaster: true,
      linkRemap: false,
      ghostLimit: 0,
      extUnixSk: false,
      tcp: { established: false, close: false, skipInFlight: false },
      external: [],
      lock,
      fileLocks: false,
      cgroups: { mode: "none" },
      emptyNet: false,
    });
    try {
      using landlock = new LandlockWatch();
      using alike = AlikeWatch.nobody();
      const inside = lookInside(tree, collected, { landlock, alike });
      cure(inside.injections);
      await writeTree(tree, collected, inside, images, {
        parent: ParentSet.none(),
        ahead: WrittenAhead.nothing(images),
        compared: ComparedAhead.nothing(),
        lock,
        spaces: undefined,
        leaveLazyPages: false,
      });
      images.commit(inventoryEntry(collected, { lock, uptime: false, machine }));
    } finally {
      collected.files.abort();
      collected.files.close();
    }
  } finally {
    images.abort();
  }
}
