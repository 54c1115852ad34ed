// A network namespace of a test's own, which goes with the last descriptor.

import { execFileSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { CLONE_NEWNET } from "../../sys/abi/sched.ts";
import { syscall } from "../../sys/ffi.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";

export class NetNamespace implements Disposable {
  readonly fd: number;
  #isOpen = true;

  /** A new namespace, in which `commands` have been run; its loopback device is up. */
  constructor(...commands: readonly string[]) {
    const home = openSync("/proc/thread-self/ns/net", "r");
    try {
      syscall("unshare", CLONE_NEWNET);
      this.fd = openSync("/proc/thread-self/ns/net", "r");
    } finally {
      syscall("setns", home, CLONE_NEWNET);
      closeSync(home);
    }
    for (const command of ["ip link set lo up", ...commands]) this.run(command);
  }

  /** Output of a command in the namespace. */
  run(command: string): string {
    return this.inside(() => execFileSync("sh", ["-c", command], { encoding: "utf8" }));
  }

  inside<T>(step: () => T): T {
    return inNetNamespace(this.fd, step);
  }

  /** May be called early, to end the namespace. */
  [Symbol.dispose](): void {
    if (this.#isOpen) closeSync(this.fd);
    this.#isOpen = false;
  }
}
