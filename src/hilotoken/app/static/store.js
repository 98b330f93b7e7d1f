// The photo, the mask and the edits, kept in the browser: a reload or an error loses nothing.

function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("hilotoken", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("desk");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function transacted(mode, act) {
  return database().then(
    (db) =>
      new Promise((resolve, reject) => {
        const transaction = db.transaction("desk", mode);
        const request = act(transaction.objectStore("desk"));
        transaction.oncomplete = () => {
          db.close();
          resolve(request.result);
        };
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
      }),
  );
}

export const put = (name, value) => transacted("readwrite", (desk) => desk.put(value, name));
export const get = (name) => transacted("readonly", (desk) => desk.get(name));
export const clear = () => transacted("readwrite", (desk) => desk.clear());
