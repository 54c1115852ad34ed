// Young objects of V8: it collects them when its room for them is full, whatever is being done then.

let collect: ((options: { readonly type: "minor" }) => void) | undefined;

/** Collects them now; the first time takes two milliseconds more. A collection of all objects would also throw away code that is not hot. */
export function collectYoungObjects(): void {
  if (collect === undefined) {
    process.getBuiltinModule("node:v8").setFlagsFromString("--expose-gc");
    collect = process.getBuiltinModule("node:vm").runInNewContext("gc") as typeof collect;
  }
  collect?.({ type: "minor" });
}
