// FEATURE_CHECK: the three features that clients may ask for. All are answered; true only for those that were asked for.

import type { CriuFeatures } from "../images/schema/messages.generated.ts";
import { probeFeature } from "../kernel/features.ts";

/** The answer to what a client asks. */
export function features(asked: CriuFeatures | undefined): CriuFeatures {
  const has = (name: "uffd-noncoop" | "pidfd_store"): boolean => probeFeature(name).supported;
  return {
    // Clients ask this before a pre-dump, which needs no tracking by the kernel here: pages are compared.
    mem_track: asked?.mem_track === true,
    lazy_pages: asked?.lazy_pages === true && has("uffd-noncoop"),
    pidfd_store: asked?.pidfd_store === true && has("pidfd_store"),
  };
}
