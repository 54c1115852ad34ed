// What a dump has to wait for in the kernel begins before its code is loaded, which takes as long.

import { isStandIn } from "../sys/front.ts";

/** Makes the kernel ready for a dump, on another thread. An engine that stands by has it ready. */
export async function prepareKernel(): Promise<void> {
  if (isStandIn()) return;
  const { startDummy } = await import("../tracee/dummy.ts");
  startDummy();
  const { prepareCounting } = await import("../tracee/executions.ts");
  void prepareCounting();
}
