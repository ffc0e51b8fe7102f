"""Text that is safe to print, and line breaks between words."""
