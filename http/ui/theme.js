// Before the first paint, so that nobody who chose dark sees a white flash.
try {
  const kept = localStorage.getItem("retire-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* storage may be off; the system's choice holds then */ }
